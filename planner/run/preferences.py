"""What TRL's trainers of pairs make of a model's outputs: the losses of a reward model, of DPO and of KTO.

trl 1.16 trainer/reward_trainer.py compute_loss, trainer/dpo_trainer.py and kto_trainer.py _compute_loss,
trainer/utils.py disable_dropout_in_model. Metrics, a number for each pair, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from memplan.planner.run import chunked_loss
from memplan.planner.run.built import Built


def called(built: Built, model: Any, batch: Mapping[str, Any]) -> Any:
    """The model's outputs for a batch, as accelerate's forward gives them: under autocast, then in fp32
    (accelerate 1.15 utils/operations.py convert_to_fp32).
    """
    with built.autocast():
        outputs = model(**batch)
    if built.setup.outputs_fp32 and built.setup.autocast != "none":
        from accelerate.utils.operations import convert_to_fp32

        outputs = convert_to_fp32(outputs)
    return outputs


def drops_nothing(model: nn.Module) -> None:
    """The probability of every dropout module to 0, as TRL's `disable_dropout` does."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def reward(built: Built) -> Any:
    """-log sigmoid(chosen - rejected): the first half of the rows is chosen."""
    outputs = called(built, built.model, {**built.batch, "use_cache": False})
    chosen, rejected = torch.chunk(outputs.logits.squeeze(-1), chunks=2)
    loss = -functional.logsigmoid(chosen - rejected).mean()
    return {"loss": loss, "logits": outputs.logits}


KL = "KL_"
"""Begins the names of a batch's tensors with another row's completion."""
BETA = 0.1
"""trl 1.16 trainer/dpo_config.py beta; its value moves no memory."""


def dpo(built: Built) -> Any:
    """-log sigmoid(beta (chosen - rejected)) of the log-ratios of a model and its reference, which runs
    second, without a graph and without checkpoints.
    """
    inputs = _inputs(built.batch)
    outputs = _scored(built, built.model, built.base, inputs)
    rows = outputs["log_probs"].sum(dim=1)
    reference = _reference(built, inputs)
    ratios = rows if reference is None else rows - reference
    chosen, rejected = ratios.chunk(2)
    return {"loss": -functional.logsigmoid(BETA * (chosen - rejected)).mean()}


def kto(built: Built) -> Any:
    """1 - sigmoid(beta (log-ratio - divergence)) of one half of the rows, with the other sign of the other;
    model and reference score the exchanged completions too, without a graph.
    """
    batch = {name: tensor for name, tensor in built.batch.items() if name != "labels"}
    own = [name for name in batch if name.startswith(KL)]
    exchanged = {name.removeprefix(KL): batch.pop(name) for name in own}
    other = _inputs({**batch, **exchanged})
    with torch.no_grad():
        divergence = _scored(built, built.model, built.base, other)["log_probs"].sum(-1)
    inputs = _inputs(batch)
    outputs = _scored(built, built.model, built.base, inputs)
    rows = outputs["log_probs"].sum(-1)
    before, reference = _reference(built, other), _reference(built, inputs)
    if before is not None:
        divergence = divergence - before
    ratios = rows if reference is None else rows - reference
    return {"loss": kto_loss(ratios, divergence)}


def kto_loss(ratios: torch.Tensor, divergence: torch.Tensor) -> torch.Tensor:
    """KTO's loss of the log-ratios (N,) of rows, one half of them chosen, and of the divergences (N,)."""
    kl = divergence.mean().detach().clamp(min=0)
    chosen, rejected = ratios.tensor_split(2)
    losses = (1 - torch.sigmoid(BETA * (chosen - kl)), 1 - torch.sigmoid(BETA * (kl - rejected)))
    return torch.cat(losses).nanmean()


def _inputs(batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What the model is called with: the batch, and the labels of its completions."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    kept = {name: tensor for name, tensor in batch.items() if name != "completion_mask"}
    return {**kept, "labels": labels, "use_cache": False}


def _scored(built: Built, model: Any, base: Any, inputs: Mapping[str, Any]) -> Any:
    with chunked_loss.fused_head(base, chunked_loss.scores_of):
        return called(built, model, inputs)


def _reference(built: Built, inputs: Mapping[str, Any]) -> torch.Tensor | None:
    return of_reference(
        built, lambda model, base: _scored(built, model, base, inputs)["log_probs"].sum(dim=1)
    )


def of_reference(built: Built, rows: Callable[[Any, Any], torch.Tensor]) -> torch.Tensor | None:
    """The reference's log-probability of each row, by `rows` of a model and its base: of a second model, or
    of this one with its adapter switched off; None where the batch has them.
    """
    if built.setup.reference == "none":
        return None
    with torch.no_grad(), unchecked(built.base):
        if built.reference is not None:
            return rows(built.reference, built.reference)
        with built.model.disable_adapter():  # type: ignore[operator]
            return rows(built.model, built.base)


@contextmanager
def unchecked(model: nn.Module) -> Iterator[None]:
    """Without checkpoints, as TRL's disable_gradient_checkpointing (models/utils.py) runs the reference."""
    held = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False) is True]
    for module in held:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in held:
            module.gradient_checkpointing = True  # type: ignore[assignment]


TASK_LOSSES: dict[str, Callable[[Built], Any]] = {"reward": reward, "dpo": dpo, "kto": kto}
"""Task -> the loss of its trainer; a task that is not here has the model's own."""
