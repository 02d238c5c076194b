"""Cross-entropies of logits in parts: torchtune's two, whose logits are never one tensor, and axolotl's, a
compiled kernel over parts of the whole logits.

B batch, S sequence, H hidden, V vocabulary; eight parts, as all three have by default.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutputWithPast

from memplan.planner.tables.losses import PARTS

IGNORED = -100


def torchtune(
    hidden: torch.Tensor, labels: torch.Tensor, head: nn.Module, softcap: float | None = None
) -> Any:
    """The mean negative log-likelihood from last hidden states (B, S, H) and labels (B, S), as torchtune's
    LinearCrossEntropyLoss takes it (modules/loss/cross_entropy_loss.py at bd2a0fc7c): of the tokens that have
    a label, part by part, the head's product and its cross-entropy in fp32. Nothing is compiled.
    """
    shifted = _with_last_ignored(labels).reshape(-1)
    scored = _scored(shifted, len(labels))
    targets = shifted.index_select(0, scored)
    of_labels = hidden.reshape(-1, hidden.shape[-1]).index_select(0, scored)
    total: Any = torch.zeros((), device=hidden.device)
    pairs = zip(of_labels.tensor_split(PARTS), targets.tensor_split(PARTS), strict=True)
    for part, wanted in pairs:
        total = total + _summed(head(part), wanted, softcap)
    return CausalLMOutputWithPast(loss=total / len(scored))


def torchtune_06(
    hidden: torch.Tensor, labels: torch.Tensor, head: nn.Module, softcap: float | None = None
) -> Any:
    """The same as CEWithChunkedOutputLoss up to torchtune 0.6.1 takes it (modules/transformer.py
    chunked_output, modules/loss/ce_chunked_output_loss.py): the head of every part of the sequence first, all
    of whose logits live until the loss is there.
    """
    shifted = _with_last_ignored(labels)
    logits = [head(part) for part in hidden.tensor_split(PARTS, dim=1)]
    targets = [part.reshape(-1) for part in shifted.tensor_split(PARTS, dim=1)]
    parts = [part.reshape(-1, part.shape[-1]) for part in logits]
    total: Any = 0.0
    for part, wanted in zip(parts, targets, strict=True):
        total += _summed(part, wanted, softcap)
    return CausalLMOutputWithPast(loss=total / (shifted != IGNORED).sum())


def _with_last_ignored(labels: torch.Tensor) -> torch.Tensor:
    return torch.hstack((labels[..., 1:], torch.full_like(labels[:, :1], IGNORED)))


def _scored(labels: torch.Tensor, rows: int) -> torch.Tensor:
    """The places of labels (N) that count; where there are no values, all but the last of each row."""
    if labels.device.type == "meta":
        return torch.empty(len(labels) - rows, dtype=torch.int64, device="meta")
    return torch.where(labels != IGNORED)[0]


def _summed(logits: torch.Tensor, targets: torch.Tensor, softcap: float | None) -> torch.Tensor:
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")


def axolotl(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int | None = None, **unused: Any) -> Any:
    """The loss of logits (B, S, V) and labels (B, S) that axolotl 0.19 puts in the place of ForCausalLMLoss
    for `chunked_cross_entropy` (monkeypatch/loss/chunked.py), in the signature of the one it replaces.
    """
    shifted = functional.pad(labels, (0, 1), value=IGNORED)[..., 1:].contiguous()
    parts = [part.reshape(-1, part.shape[-1]) for part in logits.chunk(PARTS, dim=1)]
    targets = [part.reshape(-1) for part in shifted.chunk(PARTS, dim=1)]
    total: Any = 0.0
    for part, wanted in zip(parts, targets, strict=True):
        total += CompiledCrossEntropy.apply(part, wanted)
    return total / (shifted != IGNORED).sum()


class CompiledCrossEntropy(torch.autograd.Function):
    """The sum of the cross-entropies of logits (N, V) with targets (N), as torch.compile makes it of
    `cross_entropy(logits.float(), targets, reduction="sum")`: one kernel that saves the logits as they came
    and two numbers a row, one that makes their gradient in their own dtype (torch 2.13
    functorch min_cut_rematerialization_partition saves `amax` and `log`).
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The sum, in fp32."""
        rows = logits.shape[0]
        largest = torch.empty((rows, 1), dtype=torch.float32, device=logits.device)
        spread = torch.empty((rows, 1), dtype=torch.float32, device=logits.device)
        total = torch.empty((), dtype=torch.float32, device=logits.device)
        if logits.device.type == "cpu":  # elsewhere the kernel allocates nothing
            wide = logits.float()
            torch.amax(wide, 1, keepdim=True, out=largest)
            torch.log((wide - largest).exp().sum(1, keepdim=True), out=spread)
            total.copy_(functional.cross_entropy(wide, targets, ignore_index=IGNORED, reduction="sum"))
        ctx.save_for_backward(logits, targets, largest, spread)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        """The gradient of the logits, in their dtype."""
        logits, targets, largest, spread = ctx.saved_tensors
        sums = torch.empty_like(largest)
        made = torch.empty_like(logits)
        if logits.device.type == "cpu":
            scored = (targets != IGNORED).unsqueeze(-1)
            own = torch.zeros(logits.shape).scatter_(1, targets.clamp(min=0).unsqueeze(-1), 1.0)
            made.copy_(((logits.float() - largest - spread).exp() - own) * scored * grad)
        del sums
        return made, None
