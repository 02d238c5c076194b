"""An evaluation step after training: the loss of a larger batch without a graph, as the Trainer's
prediction_step has it where only the loss is asked for; with compute_metrics, several of them and their
logits, joined on the device batch by batch (transformers 5.24 trainer.py evaluation_loop,
trainer_pt_utils.py EvalLoopContainer).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from memplan.planner.inputs.tasks import evaluates_whole, evaluation_batches, sampled_while_evaluating
from memplan.planner.run import batches, generating, losses, rollout
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
    where = next(built.model.parameters()).device
    announce = partial(watcher.announce, EVALUATION, step)
    built.model.eval()
    if TASKS[setup.task].generates:
        _sampled(built, watcher, step)
    elif setup.eval_generate is not None:
        _generated(built, announce, where)
    else:
        with announce(), built.kernels(), torch.no_grad():
            if setup.eval_kept is None:
                outputs = _outputs(built, where)[0]
                del outputs
            else:
                _keep(built, where, evaluation_batches(setup))
    built.model.train()


def _batch(built: Built, where: torch.device) -> dict[str, Any]:
    return batches.make(built.base.config, built.setup.with_(micro_batch=built.setup.eval_batch), where)


def _outputs(built: Built, where: torch.device) -> tuple[Any, Any]:
    """One batch's outputs, and the batch."""
    batch = _batch(built, where)
    return losses.forward(replace(built, batch=batch)), batch


def _generated(
    built: Built, announce: Callable[[], AbstractContextManager[None]], where: torch.device
) -> None:
    """One batch of Seq2SeqTrainer's: what the model generates, then the loss of the labels."""
    with announce():
        batch = _batch(built, where)
    made = generating.run(built, announce, batch)
    with announce(), built.kernels(), torch.no_grad(), _caching(built.base):
        outputs = losses.forward(replace(built, batch=batch))
        del outputs, made, batch


@contextmanager
def _caching(model: Any) -> Iterator[None]:
    """Inside, a decoder whose config is a copy of the model's keeps keys and values: the Trainer's
    `use_cache=False` does not reach it (transformers 5.24 models/t5/modeling_t5.py __init__, trainer.py).
    """
    configs: dict[int, Any] = {
        id(each): each for m in model.modules() if (each := getattr(m, "config", None))
    }
    configs.pop(id(model.config))
    apart = [each for each in configs.values() if getattr(each, "is_decoder", False)]
    for each in apart:
        each.use_cache = True
    try:
        yield
    finally:
        for each in apart:
            each.use_cache = False


def _sampled(built: Built, watcher: Announcer, step: int) -> None:
    """One batch of a trainer whose task generates: sampled and scored, then its loss, beside the rows that
    training sampled last.
    """
    of_batch = replace(built, setup=built.setup.with_(micro_batch=built.setup.eval_batch))
    rollout.sample(of_batch, watcher, step, EVALUATION, sampled_while_evaluating(built.setup))
    with watcher.announce(EVALUATION, step), built.kernels(), torch.no_grad():
        of_batch.batch, of_batch.rollout = of_batch.rollout, {}
        outputs = losses.forward(of_batch)
        del outputs
    of_batch.batch = {}


def _keep(built: Built, where: torch.device, count: int) -> None:
    """`count` batches whose logits and labels are joined as they come; where ranks share the data, each has
    those of all (accelerate 1.15 utils/operations.py _gpu_gather). The last batch lives as they do.
    """
    kept: list[torch.Tensor | None] = [None, None]
    for number in range(count):
        if evaluates_whole(number, count):
            outputs, inputs = _outputs(built, where)
            found = [outputs["logits"], inputs["labels"]]
            del outputs
            own = [(each.shape, each.dtype) for each in found]
        else:
            found = [torch.empty(shape, dtype=dtype, device=where) for shape, dtype in own]
        for place, (shape, dtype) in enumerate(own):
            if (ranks := built.setup.gpus) > 1:
                found[place] = torch.empty((ranks * shape[0], *shape[1:]), dtype=dtype, device=where)
            kept[place] = _joined(kept[place], found[place])
    del inputs


def _joined(kept: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
    return new if kept is None else torch.cat((kept, new), dim=0)
