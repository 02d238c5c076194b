"""The models that a task holds beside the one it trains, each with a config of its own: a teacher, a reward
model. Loaded in the dtype of the trained model's weights, unquantized, in evaluation mode, all of their
layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from memplan.planner.inputs.companions import same_vocabulary
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import Setup
from memplan.planner.run import attention
from memplan.planner.run.built import Built, Watcher
from memplan.planner.run.cutting import cut_like
from memplan.planner.run.loading import materialize
from memplan.planner.run.model import skeleton
from memplan.planner.tables.companions import COMPANIONS
from memplan.planner.tables.tasks import TASKS


class _Unnumbered:
    """A watcher that is told no layer, of a model that is built unlike the trained one: it is not cut."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def scope(self, module: str, layer: int | None) -> AbstractContextManager[None]:
        return self._watcher.scope(module, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._watcher, name)


def made(
    config: Mapping[str, Any], setup: Setup, trained: Any, device: torch.device, watcher: Watcher
) -> dict[str, nn.Module]:
    """Setup field -> the model that it names, on the device; one that the task has in any case is of the
    trained model's `config` where it names none. Raises UsageError for a name that is not known,
    a model without the class, or a teacher of another vocabulary than the trained model's.
    """
    found: dict[str, nn.Module] = {}
    plain = setup.with_(quant_type="none", quantize_experts=False)
    for field, companion in COMPANIONS.items():
        name = getattr(setup, field)
        if name is None and field not in TASKS[setup.task].judges:
            continue
        its = config if name is None else find(name).config
        kind = attention.implementation(setup.attention)
        with watcher.on_host():
            model = skeleton(its, setup.weight_dtype, kind, companion.head, companion.outputs)
        alike = its == config
        if alike:
            cut_like(model, trained)
        if companion.same_vocabulary and name is not None:
            sizes = [each.config.get_text_config().vocab_size for each in (trained, model)]  # type: ignore[union-attr]
            same_vocabulary(field, name, *sizes)
        materialize(model, plain, device, watcher if alike else _Unnumbered(watcher))
        model.memplan_alike = alike  # type: ignore[assignment]
        model.config.use_cache = companion.caches  # type: ignore[union-attr, assignment]
        found[field] = model.eval().requires_grad_(companion.asks_gradients)
    return found


def numbered(built: Built) -> list[nn.Module]:
    """The models beside the trained one whose layers are its own in number and in kind."""
    beside = [*([built.reference] if built.reference is not None else []), *built.companions.values()]
    value = getattr(built.model, "value_model", None)
    return [
        each
        for each in (*beside, *([] if value is None else [value]))
        if getattr(each, "memplan_alike", each is built.reference)
    ]
