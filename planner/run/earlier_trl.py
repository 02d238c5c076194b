"""The losses of TRL before 1.15, which take whole logits: DPO's and KTO's, and what GRPO and RLOO compare.

trl 1.9 to 1.14 trainer/dpo_trainer.py, kto_trainer.py, grpo_trainer.py and rloo_trainer.py _compute_loss,
_compute_kl_logps, _get_per_token_logps_and_entropies. The logits of the model and of its reference live until
the metrics are there, which are made of them; those of one number for each row are left out. N rows, S
sequence, C tokens of a completion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from memplan.planner.run import pictures
from memplan.planner.run.built import Built
from memplan.planner.run.preferences import BETA, KL, called, kto_loss, of_reference
from memplan.planner.run.token_scores import by_row, entropy, scored, selected
from memplan.planner.tables.tasks import KERNEL_SINCE


def dpo(built: Built) -> Any:
    """-log sigmoid(beta (chosen - rejected)) of the log-ratios of a model and its reference, which runs
    second.
    """
    inputs = {name: tensor for name, tensor in built.batch.items() if name != "completion_mask"}
    labels, mask = inputs["input_ids"][..., 1:], built.batch["completion_mask"][..., 1:]
    logits, rows, entropies = _trained(built, inputs, labels, mask)
    held: list[torch.Tensor] = []

    def of(model: Any, base: Any) -> torch.Tensor:
        held.append(_logits(built, model, inputs))
        return _rows(built, held[-1], labels, mask)

    reference = of_reference(built, of)
    chosen, rejected = (rows if reference is None else rows - reference).chunk(2)
    loss = -functional.logsigmoid(BETA * (chosen - rejected)).mean()
    _entropy(logits, entropies, mask)
    halves = logits.detach().chunk(2)
    for half, counted in zip(halves, mask.chunk(2), strict=True):
        half[counted.bool()].mean(-1).sum()
    (halves[0].argmax(dim=-1) == labels.chunk(2)[0]).sum()
    del held[:]
    return {"loss": loss}


def kto(built: Built) -> Any:
    """1 - sigmoid(beta (log-ratio - divergence)) of one half of the rows, with the other sign of the other;
    model and reference score the exchanged completions first, without a graph. The metrics copy the logits
    of both halves. Nobody switched the cache of a second model off.
    """
    batch = {name: tensor for name, tensor in built.batch.items() if name != "labels"}
    exchanged = {name.removeprefix(KL): batch.pop(name) for name in list(batch) if name.startswith(KL)}
    mask = batch.pop("completion_mask")[:, 1:]
    other = exchanged.pop("completion_mask")[:, 1:]
    caches = built.reference is not None

    def divergence(model: Any) -> torch.Tensor:
        logits = _logits(built, model, exchanged, caches and model is built.reference)
        return _rows(built, logits, exchanged["input_ids"][:, 1:], other)

    with torch.no_grad():
        ours = divergence(built.model)
    labels = batch["input_ids"][:, 1:]
    logits, rows, entropies = _trained(built, batch, labels, mask)
    held: list[Any] = []

    def both(model: Any, base: Any) -> torch.Tensor:
        theirs = divergence(model)
        cached = caches and built.setup.trl < KERNEL_SINCE
        held.append(called(built, model, {**batch, "use_cache": cached}))
        held.append(theirs)
        return _rows(built, held[0].logits[..., :-1, :], labels, mask)

    reference = of_reference(built, both)
    if reference is not None:
        ours = ours - held[1]
    loss = kto_loss(rows if reference is None else rows - reference, ours)
    _entropy(logits, entropies, mask)
    halves = [half.clone() for half in logits.detach().tensor_split(2)]
    for half, counted in zip(halves, mask.tensor_split(2), strict=True):
        half[counted.bool()].mean(-1).sum()
    del held[:], halves
    return {"loss": loss}


def scores(
    built: Built,
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    rows: int,
    shown: Mapping[str, torch.Tensor],
    length: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each of the last `length` tokens of `ids` (N, S), `rows` rows at a time, of the
    logits of these tokens alone, and their entropy where there is a graph: (N, length) both, or (0,).

    Logits are divided by a temperature in place up to 1.13, by the kernel since. Those of some rows live
    until those of the next ones are there.
    """
    logps, entropies, graph = [], [], torch.is_grad_enabled()
    for start in range(0, len(ids), rows):
        part = ids[start : start + rows]
        inputs = {"input_ids": part, "attention_mask": mask[start : start + rows], "use_cache": False}
        inputs |= pictures.part(shown, len(ids), start, start + rows)
        outputs = called(built, model, {**inputs, "logits_to_keep": length + 1})
        logits = outputs.logits[:, :-1, :][:, -length:, :]
        if built.setup.trl >= KERNEL_SINCE:
            each, found = scored(logits, part[:, -length:])
            entropies += [found.detach()] if graph else []
            del found
        else:
            logits.div_(1.0)
            each = by_row(logits, part[:, -length:])
            with torch.no_grad():
                entropies += [entropy(logits)] if graph else []
        logps.append(each)
    return torch.cat(logps), torch.cat(entropies) if entropies else ids.new_empty(0)


def _logits(built: Built, model: Any, inputs: Mapping[str, Any], cached: bool = False) -> torch.Tensor:
    outputs = called(built, model, {**inputs, "use_cache": cached})
    return outputs.logits[..., :-1, :]  # type: ignore[no-any-return]


def _trained(
    built: Built, inputs: Mapping[str, Any], labels: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The model's logits, its log-probability of each row, and the tokens' entropies where the kernel has
    them at once.
    """
    logits = _logits(built, built.model, inputs)
    if built.setup.trl < KERNEL_SINCE:
        return logits, _rows(built, logits, labels, mask), None
    each, entropies = scored(logits, labels)
    return logits, each.sum(dim=1), entropies.detach()


def _rows(built: Built, logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(N,) summed log-probabilities of completions; the kernel leaves out the other tokens itself."""
    each = selected(logits, labels, built.setup.trl)
    if built.setup.trl < KERNEL_SINCE:
        each[mask == 0] = 0.0
    return each.sum(dim=1)


def _entropy(logits: torch.Tensor, entropies: torch.Tensor | None, mask: torch.Tensor) -> None:
    """The mean entropy of completions' tokens, a metric."""
    ((entropy(logits.detach()) if entropies is None else entropies) * mask).sum()


EARLIER_LOSSES: dict[str, Callable[[Built], Any]] = {"dpo": dpo, "kto": kto}
"""Task -> the loss of its trainer where that takes whole logits."""
