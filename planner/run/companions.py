"""The models that a task holds beside the one it trains, each with a config of its own: a teacher, a reward
model. Loaded in the dtype of the trained model's weights, unquantized, in evaluation mode, all of their
layers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from memplan.planner.inputs.companions import same_vocabulary
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import Setup
from memplan.planner.run import attention
from memplan.planner.run.built import Watcher
from memplan.planner.run.loading import materialize
from memplan.planner.run.model import skeleton
from memplan.planner.tables.tasks import COMPANIONS


class _Unnumbered:
    """A watcher that is told no layer: only the trained model's are cut and stretched."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def scope(self, module: str, layer: int | None) -> AbstractContextManager[None]:
        return self._watcher.scope(module, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._watcher, name)


def made(setup: Setup, trained: Any, device: torch.device, watcher: Watcher) -> dict[str, nn.Module]:
    """Setup field -> the model that it names, on the device. Raises UsageError for a name that is not known,
    a model without the class, or a teacher of another vocabulary than the trained model's.
    """
    found: dict[str, nn.Module] = {}
    plain = setup.with_(quant_type="none", quantize_experts=False)
    for field, companion in COMPANIONS.items():
        name = getattr(setup, field)
        if name is None:
            continue
        kind = attention.implementation(setup.attention)
        with watcher.on_host():
            model = skeleton(find(name).config, setup.weight_dtype, kind, companion.head, companion.outputs)
        if companion.same_vocabulary:
            sizes = [each.config.get_text_config().vocab_size for each in (trained, model)]  # type: ignore[union-attr]
            same_vocabulary(field, name, *sizes)
        materialize(model, plain, device, _Unnumbered(watcher))
        model.config.use_cache = companion.caches  # type: ignore[union-attr, assignment]
        found[field] = model.eval().requires_grad_(companion.asks_gradients)
    return found
