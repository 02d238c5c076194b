"""The log-probabilities of sampled completions, and GRPO's and RLOO's losses of them.

trl 1.16 trainer/grpo_trainer.py _get_per_token_logps_and_entropies and _compute_loss (dapo, ratios of tokens,
their defaults), trainer/utils.py add_fused_lm_head: only completion tokens are projected. Metrics are left
out. B rows, S = P + C tokens of prompt and completion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from memplan.planner.inputs.tasks import generated
from memplan.planner.run import chunked_loss, earlier_trl, pictures
from memplan.planner.run.built import Built
from memplan.planner.run.preferences import called

BETA, CLIP = 0.04, 0.2
"""A divergence's weight, and trl 1.16 grpo_config.py epsilon: neither moves memory."""


def scores(
    built: Built,
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    rows: int,
    shown: Mapping[str, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy of each completion token, (N, C) fp32, `rows` rows of `ids` (N, S) and of
    what they show at a time. Without a graph TRL before 1.15 asks for no entropies: there are none then.
    """
    length = generated(built.setup).completion
    if built.setup.loss == "full":
        return earlier_trl.scores(built, model, ids, mask, rows, shown, length)
    logps, entropies = [], []
    base = built.reference if model is built.reference else built.base
    for start in range(0, len(ids), rows):
        part, seen = ids[start : start + rows], mask[start : start + rows]
        labels = part.masked_fill(seen == 0, -100)
        labels[:, :-length] = -100
        with chunked_loss.fused_head(base, _completions(length)):
            inputs = {"input_ids": part, "attention_mask": seen, "labels": labels}
            outputs = called(built, model, inputs | pictures.part(shown, len(ids), start, start + rows))
        logps.append(outputs["log_probs"][:, -length:])
        entropies.append(outputs["entropy"][:, -length:])
    return torch.cat(logps), torch.cat(entropies)


def _completions(length: int) -> chunked_loss.LossOf:
    """The fused projection of the last `length` tokens of each row alone, which are those with a label."""

    def loss_of(
        hidden: torch.Tensor, labels: torch.Tensor, head: nn.Linear, softcap: float | None
    ) -> dict[str, torch.Tensor]:
        hidden, labels = hidden[:, :-1], labels[:, 1:]
        mask = labels != -100
        chosen = hidden[:, -length:].reshape(-1, hidden.shape[-1])
        targets = labels[:, -length:].reshape(-1)
        found = chunked_loss.TiledLogProbabilities.apply(chosen, head.weight, head.bias, targets, softcap)
        log_probs, entropy, _ = (each.new_zeros(mask.shape).masked_scatter(mask, each) for each in found)  # type: ignore[union-attr]
        return {"log_probs": log_probs, "entropy": entropy}

    return loss_of


def _scored(built: Built) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy of each completion token of the micro-batch."""
    batch = built.batch
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    shown = {name: batch[name] for name in batch if name not in OWN}
    return scores(built, built.model, ids, mask, len(ids), shown)


OWN = (
    *("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages"),
    *("old_logps", "ref_logps"),
)
"""The tensors of a sampled batch beside those of pictures."""


def grpo(built: Built) -> Any:
    """-min(ratio x advantage, clipped ratio x advantage), and the divergence from a reference where the
    batch has its log-probabilities.
    """
    batch = built.batch
    real = batch["completion_mask"]
    logps, entropies = _scored(built)
    advantages = batch["advantages"].unsqueeze(1)
    old = batch.get("old_logps", logps.detach())
    ratio = torch.exp(logps - old)
    clipped = torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
    each = -torch.min(ratio * advantages, clipped * advantages)
    if (reference := batch.get("ref_logps")) is not None:
        divergence = torch.exp(reference - logps) - (reference - logps) - 1
        each = each + BETA * (divergence * ratio)
    loss = (each * real).sum() / real.sum().clamp(min=1)
    del entropies
    return {"loss": loss}


def rloo(built: Built) -> Any:
    """-min(ratio x advantage, clipped ratio x advantage) of whole rows (trl 1.16 trainer/rloo_trainer.py
    _compute_loss)."""
    batch = built.batch
    logps, entropies = _scored(built)
    rows = (logps * batch["completion_mask"]).sum(1)
    ratio = torch.exp(rows - batch["old_logps"])
    clipped = torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
    loss = -torch.min(ratio * batch["advantages"], clipped * batch["advantages"]).mean()
    del entropies
    return {"loss": loss}


SAMPLED_LOSSES: dict[str, Callable[[Built], Any]] = {"grpo": grpo, "rloo": rloo}
"""Task -> the loss of its trainer."""
