"""The losses of pairs that take whole logits: ORPO's and CPO's, which compare with no reference model, and
DPO's in other stacks than TRL.

trl 1.16 experimental/orpo/orpo_trainer.py and experimental/cpo/cpo_trainer.py concatenated_inputs,
concatenated_forward, get_batch_logps; trainer/utils.py selective_log_softmax. Metrics, a number for each
pair, are left out. DPO: TASKS (planner/tables/tasks.py) says where it was read. B pairs, S sequence,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from memplan.planner.run.built import Built
from memplan.planner.run.preferences import called, of_reference
from memplan.planner.tables.tasks import HOLDS_LOGITS

BETA = 0.1
"""trl 1.16 experimental/orpo/orpo_config.py and cpo_config.py beta; its value moves no memory."""


def orpo(built: Built) -> Any:
    """The chosen rows' cross-entropy - beta log sigmoid(log-odds ratio), of mean log-probabilities."""
    inputs, outputs = _forward(built)
    likelihood = _likelihood(outputs.logits, inputs["input_ids"].clone())
    rows, counts = _log_probabilities(outputs.logits, inputs["labels"])
    chosen, rejected = (rows / counts).float().chunk(2)
    odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return {"loss": likelihood - (BETA * functional.logsigmoid(odds)).mean(), "logits": outputs.logits}


def cpo(built: Built) -> Any:
    """The chosen rows' cross-entropy - log sigmoid(beta (chosen - rejected)), of summed log-probabilities."""
    inputs, outputs = _forward(built)
    likelihood = _likelihood(outputs.logits, inputs["labels"].clone())
    rows, _ = _log_probabilities(outputs.logits, inputs["labels"])
    chosen, rejected = rows.chunk(2)
    loss = -functional.logsigmoid(BETA * (chosen - rejected)).mean() + likelihood
    return {"loss": loss, "logits": outputs.logits}


def dpo_logits(built: Built) -> Any:
    """-log sigmoid(beta (chosen - rejected)) of the log-ratios of a model and its reference, which runs
    second; whose logits are held meanwhile, HOLDS_LOGITS says.
    """
    logits, rows = _scored(built, built.model)
    held = logits if built.setup.recipe in HOLDS_LOGITS else None
    del logits
    reference = of_reference(built, lambda model, base: _scored(built, model)[1])
    ratios = rows if reference is None else rows - reference
    chosen, rejected = ratios.chunk(2)
    loss = -functional.logsigmoid(BETA * (chosen - rejected)).mean()
    del held
    return {"loss": loss}


def _scored(built: Built, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits in fp32, and (2B,) summed log-probabilities of each row's labels, of a copy of the batch."""
    inputs = {name: tensor.clone() for name, tensor in built.batch.items()}
    labels = inputs.pop("labels")
    logits = called(built, model, {**inputs, "use_cache": False}).logits.to(torch.float32)
    labels = labels[:, 1:].clone()
    counted = labels != -100
    labels = labels.masked_fill(~counted, 0)
    each = torch.gather(logits[:, :-1, :].log_softmax(-1), dim=2, index=labels.unsqueeze(2)).squeeze(2)
    return logits, (each * counted).sum(-1)


def _forward(built: Built) -> tuple[dict[str, torch.Tensor], Any]:
    """The pairs' rows joined, chosen ones first (the batch keeps its own), and the model's outputs."""
    inputs = {name: torch.cat(tensor.chunk(2)) for name, tensor in built.batch.items()}
    ids = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return inputs, called(built, built.model, {**ids, "use_cache": False})


def _likelihood(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the chosen rows, of a contiguous copy of all their logits but the last token's."""
    chosen = logits.shape[0] // 2
    shifted = logits[:chosen][..., :-1, :].contiguous()
    targets = labels[:chosen][..., 1:].contiguous().view(-1)
    return functional.cross_entropy(shifted.view(-1, shifted.shape[-1]), targets)


def _log_probabilities(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(2B,) summed log-probabilities of each row's labels, and how many there are."""
    labels, logits = labels[:, 1:].clone(), logits[:, :-1, :]
    scored = labels != -100
    labels = torch.where(labels == -100, 0, labels)
    each = SelectedLogProbabilities.apply(logits, labels)
    return (each * scored).sum(-1), scored.sum(-1)


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x < -0.6931471805599453, torch.log1p(-torch.exp(x)), torch.log(-torch.expm1(x)))


class SelectedLogProbabilities(torch.autograd.Function):
    """log p(label) from logits (N, S, V): one Triton kernel in TRL, which allocates four fp32 numbers a token
    and, in the backward, the gradient of the logits (trl 1.16 kernels/logprob_entropy.py
    _LogProbEntropyFunction). On meta and on a GPU nothing is folded, on a CPU torch does it.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """A log-probability for each label."""
        found = torch.empty(logits.shape[:-1], device=logits.device, dtype=torch.float32)
        _entropy, log_z, expected = (torch.empty_like(found) for _ in range(3))
        if logits.device.type == "cpu":
            log_z.copy_(torch.logsumexp(logits.float(), -1))
            found.copy_(logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - log_z)
        ctx.save_for_backward(logits, labels, log_z, expected)
        return found

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        """grad (1[label] - p) for each entry."""
        logits, labels, log_z, _ = ctx.saved_tensors
        slope = torch.empty_like(logits, memory_format=torch.contiguous_format)
        grad = grad.contiguous()
        if logits.device.type == "cpu":
            slope.copy_(-torch.exp(logits - log_z.unsqueeze(-1)))
            slope.scatter_add_(-1, labels.unsqueeze(-1), torch.ones_like(slope[..., :1]))
            slope.mul_(grad.unsqueeze(-1))
        return slope, None


WHOLE_LOGITS_LOSSES: dict[str, Callable[[Built], Any]] = {
    "orpo": orpo,
    "cpo": cpo,
    "dpo_logits": dpo_logits,
}
"""Task -> the loss of its trainer."""
