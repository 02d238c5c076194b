"""An evaluation step after training: the loss of a larger batch without a graph, as the Trainer's
prediction_step has it where only the loss is asked for (transformers 5.24 trainer.py evaluate: without
compute_metrics).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from memplan.planner.run import batches, losses
from memplan.planner.run.built import Built
from memplan.planner.run.step import Announcer
from memplan.planner.tables.components import EVALUATION


def run(built: Built, watcher: Announcer, step: int) -> None:
    """One evaluation step of `built`'s setup, announced as a moment of training step `step`; nothing where
    the setup has none.
    """
    setup = built.setup
    if setup.eval_batch is None:
        return
    if setup.loop.frees_gradients:
        built.optimizer.zero_grad(set_to_none=True)
    where = next(iter(built.batch.values())).device
    with watcher.announce(EVALUATION, step), built.kernels(), torch.no_grad():
        built.model.eval()
        batch = batches.make(built.base.config, setup.with_(micro_batch=setup.eval_batch), where)
        outputs = losses.forward(replace(built, batch=batch))
        del outputs, batch
        built.model.train()
