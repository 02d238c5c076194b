"""Liger's fused linear cross-entropy: the loss and both gradients in the forward, over chunks of logits, the
whole of them never held.

What liger-kernel 0.8.5 does (ops/fused_linear_cross_entropy.py, transformers/model/loss_utils.py), allocation
by allocation: gradients of the hidden states and of a trained head, made in the forward and saved; a chunk of
logits at a time, whose rows are so many that a chunk has about as many entries as the hidden states. Its
kernel turns logits into their gradient in place: on meta and on a GPU nothing is computed, on a CPU torch
does it. N = B x S tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast


def rows_of_chunk(tokens: int, hidden: int, vocabulary: int) -> int:
    """Rows of a chunk of logits: next_power_of_2(ceil(N / ceil(V / H))), at most N."""
    wanted = -(-tokens // -(-vocabulary // hidden))
    return min(tokens, 1 << (wanted - 1).bit_length())


def loss_of(hidden: torch.Tensor, labels: torch.Tensor, head: nn.Linear, softcap: float | None = None) -> Any:
    """The mean negative log-likelihood of the next tokens, from last hidden states (B, S, H) and labels (B,
    S).

    In Liger's own kind of outputs: AdaLoRA's regularization is added to their `loss` (peft 0.21
    tuners/adalora/model.py forward).
    """
    shifted = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:].contiguous().view(-1)
    loss: Any = FusedLinearCrossEntropy.apply(
        hidden.reshape(-1, hidden.shape[-1]), head.weight, head.bias, shifted, softcap
    )
    return CausalLMOutputWithPast(loss=loss)


class FusedLinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of hidden (N, H) @ weight (V, H)^T with targets (N), -100 ignored, as a mean."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        softcap: float | None,
    ) -> torch.Tensor:
        """The loss, and the gradients of its inputs chunk by chunk, which are kept for the backward."""
        tokens, rows = hidden.shape[0], rows_of_chunk(hidden.shape[0], hidden.shape[1], weight.shape[0])
        of_hidden = torch.zeros_like(hidden)
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        losses = torch.zeros(tokens, device=hidden.device, dtype=torch.float32)
        counted = (targets != -100).sum()
        for start in range(0, tokens, rows):
            part = slice(start, min(start + rows, tokens))
            chunk = hidden[part]
            logits = chunk @ weight.t()
            if bias is not None:
                logits = logits + bias
            if (
                hidden.device.type == "cpu"
            ):  # as in chunked.py: the kernel that Liger runs on a GPU allocates nothing
                _to_gradient(logits, targets[part], losses[part], counted, softcap)
            of_hidden[part] = logits @ weight
            if of_weight is not None:
                _add_product(of_weight, logits, chunk)
            if of_bias is not None:
                of_bias += logits.sum(dim=0)
            del logits
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """The gradients that the forward made, scaled in place."""
        gradients = ctx.saved_tensors
        for each in (
            gradients
        ):  # the last operation of a step gives 1; a loss divided by accumulation steps scales in place
            if each is not None:
                each.mul_(grad.to(each.dtype))
        return (*gradients, None, None)


def _add_product(sums: torch.Tensor, logits: torch.Tensor, chunk: torch.Tensor) -> None:
    """sums += logits^T @ chunk: one kernel where the dtypes agree (compute capability 8.0 and later), else
    with a product beside.
    """
    if sums.dtype == logits.dtype and sums.device.type != "cpu":
        torch.addmm(sums, logits.t(), chunk.to(logits.dtype), out=sums)
    else:
        sums += torch.mm(logits.t(), chunk.to(logits.dtype)).float()


def _to_gradient(
    logits: torch.Tensor,
    targets: torch.Tensor,
    losses: torch.Tensor,
    counted: torch.Tensor,
    softcap: float | None,
) -> None:
    """A chunk's losses, and its logits turned into the gradient of the mean loss, in place."""
    bent = None if softcap is None else torch.tanh(logits.float() / softcap)
    wide = logits.float() if bent is None or softcap is None else softcap * bent
    scored = targets != -100
    chosen = wide.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    losses.copy_((torch.logsumexp(wide, -1) - chosen).masked_fill(~scored, 0) / counted)
    slope = torch.softmax(wide, -1)
    slope.scatter_add_(-1, targets.clamp(min=0).unsqueeze(-1), torch.full_like(chosen, -1).unsqueeze(-1))
    slope = slope.masked_fill(~scored.unsqueeze(-1), 0) / counted
    logits.copy_(slope if bent is None else slope * (1 - bent * bent))
