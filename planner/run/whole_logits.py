"""The losses of pairs that take whole logits: ORPO's and CPO's, which compare with no reference model, and
DPO's in other stacks than TRL.

trl 1.16 experimental/orpo/orpo_trainer.py and experimental/cpo/cpo_trainer.py concatenated_inputs,
concatenated_forward, get_batch_logps. Metrics, a number for each
pair, are left out. DPO: TASKS (planner/tables/tasks.py) says where it was read. B pairs, S sequence,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from memplan.planner.run.built import Built
from memplan.planner.run.preferences import KL, called, kto_loss, of_reference
from memplan.planner.run.token_scores import selected
from memplan.planner.tables.tasks import HOLDS_LOGITS

BETA = 0.1
"""trl 1.16 experimental/orpo/orpo_config.py and cpo_config.py beta; its value moves no memory."""


def orpo(built: Built) -> Any:
    """The chosen rows' cross-entropy - beta log sigmoid(log-odds ratio), of mean log-probabilities."""
    inputs, outputs = _forward(built)
    likelihood = _likelihood(outputs.logits, inputs["input_ids"].clone())
    rows, counts = _log_probabilities(built, outputs.logits, inputs["labels"])
    chosen, rejected = (rows / counts).float().chunk(2)
    odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return {"loss": likelihood - (BETA * functional.logsigmoid(odds)).mean(), "logits": outputs.logits}


def cpo(built: Built) -> Any:
    """The chosen rows' cross-entropy - log sigmoid(beta (chosen - rejected)), of summed log-probabilities."""
    inputs, outputs = _forward(built)
    likelihood = _likelihood(outputs.logits, inputs["labels"].clone())
    rows, _ = _log_probabilities(built, outputs.logits, inputs["labels"])
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


def kto_logits(built: Built) -> Any:
    """1 - sigmoid(beta (log-ratio - divergence)) of one half of the rows, with the other sign of the other;
    model and reference each score the exchanged completions after their own rows, without a graph, and copy
    the logits of both halves, the model's until the metrics are there.
    """
    ratios, divergence, held = _halves(built, built.model)
    reference = of_reference(built, lambda model, base: torch.stack(_halves(built, model)[:2]))
    if reference is not None:
        ratios, divergence = ratios - reference[0], divergence - reference[1]
    loss = kto_loss(ratios, divergence)
    del held
    return {"loss": loss}


def _halves(built: Built, model: Any) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """(N,) log-probabilities of rows and of exchanged completions, and the logits of either half of the
    rows.
    """
    logits, rows = _scored(built, model)
    with torch.no_grad():
        exchanged = _scored(built, model, KL)[1]
    return rows, exchanged, [half.clone() for half in logits.tensor_split(2)]


def asft(built: Built) -> Any:
    """Cross-entropy weighted by the labels' probabilities, and the divergence from the reference's softmax
    (LLaMA-Factory 0.9.5 train/trainer_utils.py). The model has the labels too, and takes its own loss. Logits
    of both live until the loss is there, beside a copy of all but the last token's.
    """
    before = _of_reference(built)
    outputs = called(built, built.model, built.batch)
    logits = outputs.logits.float()
    shifted, reference = (
        each[..., :-1, :].contiguous().view(-1, each.shape[-1]) for each in (logits, before.logits)
    )
    labels = built.batch["labels"][..., 1:].contiguous().view(-1)
    each = functional.cross_entropy(shifted, labels, reduction="none")
    each = each[labels != -100]
    with torch.no_grad():
        weights = torch.exp(-each)
    likelihood = (each * weights).mean()
    del each, weights
    found, wanted = functional.log_softmax(shifted, dim=-1), functional.softmax(reference, dim=-1)
    distance = functional.kl_div(found, wanted, reduction="none").sum(dim=-1)
    mask = (labels != -100).float()
    return {"loss": likelihood + BETA * (distance * mask).sum() / mask.sum()}


def _of_reference(built: Built) -> Any:
    """The second model's outputs, without a graph; nobody switched its cache off."""
    inputs = {name: tensor for name, tensor in built.batch.items() if name != "labels"}
    with torch.no_grad():
        return called(built, built.reference, {**inputs, "use_cache": True})


def _scored(built: Built, model: Any, begins: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    """The logits in fp32, and (N,) summed log-probabilities of each row's labels, of a copy of the batch's
    tensors: those whose names begin as `begins`, KL or "", says.
    """
    inputs = {
        name.removeprefix(begins): tensor.clone()
        for name, tensor in built.batch.items()
        if name.startswith(KL) == bool(begins)
    }
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


def _log_probabilities(
    built: Built, logits: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(2B,) summed log-probabilities of each row's labels, and how many there are."""
    labels, logits = labels[:, 1:].clone(), logits[:, :-1, :]
    scored = labels != -100
    labels = torch.where(labels == -100, 0, labels)
    each = selected(logits, labels, built.setup.trl)
    return (each * scored).sum(-1), scored.sum(-1)


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x < -0.6931471805599453, torch.log1p(-torch.exp(x)), torch.log(-torch.expm1(x)))


WHOLE_LOGITS_LOSSES: dict[str, Callable[[Built], Any]] = {
    "orpo": orpo,
    "cpo": cpo,
    "asft": asft,
    "dpo_logits": dpo_logits,
    "kto_logits": kto_logits,
}
"""Task -> the loss of its trainer."""
