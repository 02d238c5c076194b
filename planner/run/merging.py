"""Merging an adapter into its base after training, in the process that trained: peft's own merge_and_unload,
linear layer by linear layer. Optimizer and adapters are still there, as while a trainer is.
"""

from __future__ import annotations

import torch

from memplan.planner.run.built import Announcer, Built
from memplan.planner.tables.components import MERGE


def run(built: Built, watcher: Announcer, step: int) -> None:
    """The merge of `built`'s setup, announced as a moment of training step `step`; nothing where the setup
    has none. The model is the base alone afterwards: nothing follows.
    """
    if not built.setup.merge:
        return
    if built.setup.loop.frees_gradients:
        built.optimizer.zero_grad(set_to_none=True)
    with watcher.announce(MERGE, step), torch.no_grad():
        built.model.merge_and_unload()  # type: ignore[operator]
