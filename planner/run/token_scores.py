"""A token's log-probability of whole logits, as TRL takes it: one row after another, or by one Triton kernel.

trl 1.9 to 1.13 trainer/utils.py selective_log_softmax, entropy_from_logits; since 1.14 kernels/
logprob_entropy.py. N rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from memplan.planner.tables.tasks import KERNEL_SINCE


def selected(logits: torch.Tensor, labels: torch.Tensor, trl: str) -> torch.Tensor:
    """(N, T) log-probabilities of the labels, as a release of TRL takes them."""
    return by_row(logits, labels) if trl < KERNEL_SINCE else scored(logits, labels)[0]


def by_row(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(N, T) log-probabilities, row by row: of fp32 logits a log-sum-exp, of others a log-softmax."""
    index = labels.unsqueeze(-1)
    if logits.dtype == torch.float32:
        entries = torch.gather(logits, dim=-1, index=index)
        each = entries - torch.stack([torch.logsumexp(row, dim=-1) for row in logits]).unsqueeze(-1)
    else:
        found = []
        for row, row_labels in zip(logits, index, strict=True):
            probabilities = functional.log_softmax(row, dim=-1)
            found.append(probabilities.gather(dim=-1, index=row_labels))
        each = torch.stack(found)
    return each.squeeze(-1)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """One number for each token, of 128 tokens at a time."""
    found = []
    for part in logits.reshape(-1, logits.shape[-1]).split(128):
        probabilities = functional.log_softmax(part, dim=-1)
        found.append(-(torch.exp(probabilities) * probabilities).sum(-1))
    return torch.cat(found).reshape(logits.shape[:-1])


def scored(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, T) log-probabilities and entropies, both fp32, by TRL's kernel."""
    each, entropies = _Kernel.apply(logits, labels)
    return each, entropies


class _Kernel(torch.autograd.Function):
    """One Triton kernel in TRL, which allocates four fp32 numbers a token and, in the backward, the gradient
    of the logits (kernels/logprob_entropy.py _LogProbEntropyFunction). On meta and on a GPU nothing is
    folded, on a CPU torch does it.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A log-probability and an entropy for each label."""
        found = torch.empty(logits.shape[:-1], device=logits.device, dtype=torch.float32)
        entropies, log_z, expected = (torch.empty_like(found) for _ in range(3))
        if logits.device.type == "cpu":
            log_z.copy_(torch.logsumexp(logits.float(), -1))
            found.copy_(logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - log_z)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, labels, log_z, expected)
        return found, entropies

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        """grad (1[label] - p) for each entry."""
        logits, labels, log_z, _expected = ctx.saved_tensors
        slope = torch.empty_like(logits, memory_format=torch.contiguous_format)
        grad = grad.contiguous()
        if logits.device.type == "cpu":
            slope.copy_(-torch.exp(logits - log_z.unsqueeze(-1)))
            slope.scatter_add_(-1, labels.unsqueeze(-1), torch.ones_like(slope[..., :1]))
            slope.mul_(grad.unsqueeze(-1))
        return slope, None
