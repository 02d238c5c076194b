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


def dpo_whole(built: Built) -> Any:
    """The same loss in TRL before 1.13: the logits of the model and of its reference live until the metrics
    are there, whose entropy is that of a copy of all but the last token's (trl 1.9 trainer/dpo_trainer.py
    _compute_loss). Metrics of one number for each row are left out.
    """
    inputs = {name: tensor for name, tensor in built.batch.items() if name != "completion_mask"}
    labels, mask = inputs["input_ids"][..., 1:], built.batch["completion_mask"][..., 1:]
    logits = called(built, built.model, {**inputs, "use_cache": False}).logits[..., :-1, :]
    rows = _selected(logits, labels, mask)
    held: list[torch.Tensor] = []

    def scored(model: Any, base: Any) -> torch.Tensor:
        held.append(called(built, model, {**inputs, "use_cache": False}).logits[..., :-1, :])
        return _selected(held[-1], labels, mask)

    reference = of_reference(built, scored)
    chosen, rejected = (rows if reference is None else rows - reference).chunk(2)
    loss = -functional.logsigmoid(BETA * (chosen - rejected)).mean()
    _metrics(logits.detach(), labels, mask)
    del held[:]
    return {"loss": loss}


def _selected(logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(2B,) summed log-probabilities of completions, row by row: of fp32 logits a log-sum-exp, of others a
    log-softmax (trl 1.9 trainer/utils.py selective_log_softmax).
    """
    index = labels.unsqueeze(-1)
    if logits.dtype == torch.float32:
        selected = torch.gather(logits, dim=-1, index=index)
        each = selected - torch.stack([torch.logsumexp(row, dim=-1) for row in logits]).unsqueeze(-1)
        del selected
    else:
        found = []
        for row, row_labels in zip(logits, index, strict=True):
            probabilities = functional.log_softmax(row, dim=-1)
            found.append(probabilities.gather(dim=-1, index=row_labels))
        each = torch.stack(found)
    each = each.squeeze(-1)
    each[mask == 0] = 0.0
    return each.sum(dim=1)


def _metrics(logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> None:
    """What the trainer makes of whole logits beside the loss: their entropy, the mean logit of each half's
    completions, and the chosen half's most likely tokens.
    """
    (_entropy(logits) * mask).sum()
    chosen, rejected = logits.chunk(2)
    for half, counted in zip((chosen, rejected), mask.chunk(2), strict=True):
        half[counted.bool()].mean(-1).sum()
    (chosen.argmax(dim=-1) == labels.chunk(2)[0]).sum()


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    """One number for each token, of 128 tokens at a time (trl 1.9 trainer/utils.py entropy_from_logits)."""
    found = []
    for part in logits.reshape(-1, logits.shape[-1]).split(128):
        probabilities = functional.log_softmax(part, dim=-1)
        found.append(-(torch.exp(probabilities) * probabilities).sum(-1))
    return torch.cat(found).reshape(logits.shape[:-1])


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
    "dpo_whole": dpo_whole,
}
"""Task -> the loss of its trainer."""
