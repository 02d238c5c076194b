"""An evaluation step after training: the loss of a larger batch without a graph, as the Trainer's
prediction_step has it where only the loss is asked for; with compute_metrics, several of them and their
logits, joined on the device batch by batch (transformers 5.24 trainer.py evaluation_loop,
trainer_pt_utils.py EvalLoopContainer).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from memplan.planner.inputs.tasks import evaluation_batches
from memplan.planner.run import batches, losses
from memplan.planner.run.built import Announcer, Built
from memplan.planner.tables.components import EVALUATION
from memplan.planner.tables.tasks import TASKS


def run(built: Built, watcher: Announcer, step: int) -> None:
    """The evaluation of `built`'s setup, announced as a moment of training step `step`; nothing where the
    setup has none.
    """
    setup = built.setup
    if setup.eval_batch is None or TASKS[setup.task].judges:
        return  # PPO's samples of an evaluation set belong to its own loop
    if setup.loop.frees_gradients:
        built.optimizer.zero_grad(set_to_none=True)
    where = next(iter(built.batch.values())).device
    with watcher.announce(EVALUATION, step), built.kernels(), torch.no_grad():
        built.model.eval()
        if setup.eval_kept is None:
            outputs = _outputs(built, where)[0]
            del outputs
        else:
            _keep(built, where, evaluation_batches(setup))
        built.model.train()


def _outputs(built: Built, where: torch.device) -> tuple[Any, Any]:
    """One batch's outputs, and the batch."""
    batch = batches.make(built.base.config, built.setup.with_(micro_batch=built.setup.eval_batch), where)
    return losses.forward(replace(built, batch=batch)), batch


def _keep(built: Built, where: torch.device, count: int) -> None:
    """`count` batches whose logits and labels are joined as they come. Of those between the first and the
    last only what is kept of them is made: a forward frees what it took. The last batch lives as they do.
    """
    all_logits = all_labels = logits = labels = inputs = None
    for number in range(count):
        if number in (0, count - 1):
            outputs, inputs = _outputs(built, where)
            logits, labels = outputs["logits"], inputs["labels"]
            del outputs
        else:
            logits, labels = torch.empty_like(logits), torch.empty_like(labels)
        all_logits = _joined(all_logits, logits)
        all_labels = _joined(all_labels, labels)


def _joined(kept: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
    return new if kept is None else torch.cat((kept, new), dim=0)
