"""The hash of what a prediction is made from: a recorded score is stale where it differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from memplan.planner.tables.defaults import BASE
from memplan.validate.evaluation_context import EvaluationContext


def input_key(model: str, fields: Mapping[str, Any], context: EvaluationContext, *more: Any) -> str:
    """16 hexadecimal digits over the model's config, the resolved setup (which the tables of methods,
    recipes and defaults fill) where it says other than the fallback, the named GPU's row, and `more`. A new
    Setup field with a fallback changes no key.
    """
    setup = context.setup(model, fields)
    chosen = {name: value for name, value in setup.to_document().items() if value != _plain(BASE.get(name))}
    gpu = context.gpu(setup.gpu) if setup.gpu is not None else None
    room = (gpu.usable_bytes, gpu.context_bytes, gpu.capability) if gpu is not None else None
    parts = [context.model(model).config, chosen, room, more]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
