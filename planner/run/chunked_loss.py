"""TRL's fused output projection: per-token log-probabilities from tiles of logits, never the whole of them.

What trl 1.16 does (trainer/utils.py add_fused_lm_head, kernels/chunked_logprob.py ChunkedLogProbFunction),
allocation by allocation: the hidden states that have a label, seven fp32 numbers a token, one tile of 4,096
tokens x 32,768 entries, the casts of a tile's operands; the backward makes each tile again and sums both
gradients in fp32. TRL folds a tile with a Triton kernel, which allocates nothing: on meta and on a GPU
nothing is folded (its numbers move no memory, torch's own operations would), on a CPU torch does it. B batch,
S sequence, H hidden, V vocabulary, N = B x (S - 1) scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from memplan.planner.run.model import task_type
from memplan.planner.tables.errors import UsageError

TOKENS, ENTRIES = 4096, 32768


LossOf = Callable[[torch.Tensor, torch.Tensor, nn.Linear, float | None], Any]
"""(last hidden states, labels, output projection, softcap) -> outputs with a loss and without logits."""


@contextmanager
def fused_head(model: Any, loss_of: LossOf, inner: str = "") -> Iterator[None]:
    """While active, calling `model` (a transformers causal language model) with labels gives a loss and no
    logits. `inner`: the attribute that has the backbone where the class's base_model_prefix names none.

    Raises UsageError for a model whose last hidden states are not its backbone's, times its output
    embeddings.
    """
    backbone = getattr(model, inner, model) if model.base_model is model else model.base_model
    if task_type(model) != "CAUSAL_LM" or backbone is model:
        why = (
            "is no causal language model" if backbone is not model else "has none under its base_model_prefix"
        )
        raise UsageError(
            f"a loss without logits needs a backbone's last hidden states: {type(model).__name__} {why}; "
            "use --loss full"
        )
    own = model.__dict__.get("forward")

    def forward(labels: torch.Tensor, **inputs: Any) -> Any:
        hidden = backbone(**{**inputs, "use_cache": False}).last_hidden_state
        return loss_of(hidden, labels, model.get_output_embeddings(), softcap_of(model.config))

    model.forward = forward
    try:
        yield
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own


def softcap_of(config: Any) -> float | None:
    """The config's cap of the final logits; None where it has none."""
    return getattr(config.get_text_config(), "final_logit_softcapping", None)


def loss_of(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    head: nn.Linear,
    softcap: float | None = None,
    saves_mask: bool = False,
) -> dict[str, torch.Tensor]:
    """The mean negative log-likelihood of the next tokens from last hidden states (B, S, H), with what
    SFTTrainer computes beside it. `saves_mask`: as `scores_of`.

    The trainer asks for the entropy and for the most likely entries too, and takes the mean itself, beside
    the model's own loss (trl 1.16 trainer/sft_trainer.py compute_loss).
    """
    found = scores_of(hidden, labels, head, softcap, saves_mask)
    count = found["label_mask"].sum().clamp(min=1)
    return {"loss": (-found["log_probs"]).sum() / count}


def scores_of(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    head: nn.Linear,
    softcap: float | None = None,
    saves_mask: bool = False,
) -> dict[str, torch.Tensor]:
    """What the fused projection returns: a log-probability, the entropy and whether it was the most likely
    entry for each token, which of them are scored, and the loss (trl 1.16 trainer/utils.py
    FusedCausalLMOutput).

    `saves_mask`: the index of the scored tokens, which TRL saves before, is seen by hooks that count what is
    saved.
    """
    hidden, labels = hidden[:, :-1], labels[:, 1:]
    mask = labels != -100
    if saves_mask:
        hidden = _Indexed.apply(hidden, mask)
    targets = labels.clamp(min=0).reshape(-1)
    found = TiledLogProbabilities.apply(
        hidden.reshape(-1, hidden.shape[-1]), head.weight, head.bias, targets, softcap
    )
    log_probabilities, entropy, best = (each.view(mask.shape).masked_fill(~mask, 0) for each in found)  # type: ignore[union-attr]
    own = -log_probabilities.sum() / mask.sum().clamp(min=1)
    return {
        "loss": own,
        "log_probs": log_probabilities,
        "entropy": entropy,
        "is_top1": best,
        "label_mask": mask,
    }


class _Indexed(torch.autograd.Function):
    """The same hidden states, with the index saved for backward."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(mask)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        ctx.saved_tensors  # noqa: B018  (read, so that a hook brings it back)
        return grad, None


class TiledLogProbabilities(torch.autograd.Function):
    """log p(target), the entropy and whether the target is the most likely entry, of hidden (N, H) @ weight
    (V, H)^T, tile by tile.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        softcap: float | None,
    ) -> tuple[torch.Tensor, ...]:
        """Log-probabilities of the targets, tile by tile, so that the full logits are never materialized."""
        device, tokens = hidden.device, hidden.shape[0]
        ctx.compute = _compute_dtype(hidden)
        statistics = [
            torch.full((tokens,), start, device=device, dtype=torch.float32)
            for start in (float("-inf"), 0, 0, 0, 0, float("-inf"), 0)
        ]
        largest, total, weighted, _, _, before, chosen = statistics
        buffer = torch.empty((min(tokens, TOKENS), ENTRIES), device=device, dtype=ctx.compute)
        for rows, columns, tile, _, _ in _tiles(hidden, weight, bias, buffer, ctx.compute):
            if device.type == "cpu":
                _fold(
                    tile,
                    targets[rows],
                    [each[rows] for each in (largest, total, weighted, before, chosen)],
                    columns.start,
                    softcap,
                )
        log_total = largest + torch.log(total)
        probabilities = chosen - log_total
        entropy = log_total - weighted / total
        best = (chosen >= largest) & (chosen > before)
        ctx.save_for_backward(hidden, weight, bias, targets, log_total, entropy)
        ctx.softcap = softcap
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(best)
        return probabilities, entropy, best

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *unused: Any) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """Gradients of hidden states, weight and bias, each tile of logits computed again."""
        hidden, weight, bias, targets, log_total, _ = ctx.saved_tensors
        device = hidden.device
        of_hidden = (
            torch.zeros(hidden.shape, device=device, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        )
        of_weight = (
            torch.zeros(weight.shape, device=device, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        )
        of_bias = (
            torch.zeros(bias.shape, device=device, dtype=torch.float32)
            if bias is not None and ctx.needs_input_grad[2]
            else None
        )
        buffer = torch.empty((min(hidden.shape[0], TOKENS), ENTRIES), device=device, dtype=ctx.compute)
        grad = grad.float().contiguous()
        for rows, columns, tile, left, right in _tiles(hidden, weight, bias, buffer, ctx.compute):
            if device.type == "cpu":
                _to_gradient(tile, targets[rows], log_total[rows], grad[rows], columns.start, ctx.softcap)
            if of_hidden is not None:
                _add_product(of_hidden[rows], tile, right)
            if of_weight is not None:
                _add_product(of_weight[columns], tile.t(), left)
            if of_bias is not None:
                of_bias[columns] += tile.sum(dim=0, dtype=torch.float32)
        pairs = ((of_hidden, hidden), (of_weight, weight), (of_bias, bias))
        return (*(None if sums is None else sums.to(like.dtype) for sums, like in pairs), None, None)


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    """The products' dtype: autocast's where it is on for this device (the trace switches CUDA's on while it
    runs on meta).
    """
    kind = "cuda" if hidden.device.type == "meta" else hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _tiles(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    buffer: torch.Tensor,
    compute: torch.dtype,
) -> Iterator[tuple[slice, slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(rows, columns, tile of logits, its rows of hidden, its rows of weight), each tile in the same
    buffer.
    """
    for first in range(0, hidden.shape[0], TOKENS):
        rows = slice(first, min(first + TOKENS, hidden.shape[0]))
        left = hidden[rows].to(compute)
        for start in range(0, weight.shape[0], ENTRIES):
            columns = slice(start, min(start + ENTRIES, weight.shape[0]))
            right = weight[columns].to(compute)
            tile = buffer[: rows.stop - rows.start, : columns.stop - columns.start]
            torch.mm(left, right.t(), out=tile)
            if bias is not None:
                tile.add_(bias[columns].to(compute))
            yield rows, columns, tile, left, right


def _add_product(sums: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """sums += a @ b in fp32: one kernel on CUDA, with fp32 copies elsewhere (trl 1.16
    kernels/chunked_logprob.py _addmm_fp32).
    """
    if sums.device.type == "cpu":
        sums.addmm_(a.float(), b.float())
    elif sums.device.type == "cuda":
        torch.addmm(sums, a, b, out_dtype=torch.float32, out=sums)


def _fold(
    tile: torch.Tensor,
    targets: torch.Tensor,
    statistics: list[torch.Tensor],
    start: int,
    softcap: float | None,
) -> None:
    """One tile into the running maximum, sums of exponentials, largest entry before the target and target's
    logit, in place.
    """
    largest, total, weighted, before, chosen = statistics
    logits = tile.float() if softcap is None else softcap * torch.tanh(tile.float() / softcap)
    local = targets - start
    earlier = torch.arange(tile.shape[1], device=tile.device) < local.unsqueeze(-1)
    before.copy_(torch.maximum(before, logits.masked_fill(~earlier, float("-inf")).amax(-1)))
    larger = torch.maximum(largest, logits.amax(-1))
    shrunk, powers = torch.exp(largest - larger), torch.exp(logits - larger.unsqueeze(-1))
    total.mul_(shrunk).add_(powers.sum(-1))
    weighted.mul_(shrunk).add_((powers * logits).sum(-1))
    largest.copy_(larger)
    inside = (local >= 0) & (local < tile.shape[1])
    own = logits.gather(-1, local.clamp(0, tile.shape[1] - 1).unsqueeze(-1)).squeeze(-1)
    chosen.copy_(torch.where(inside, own, chosen))


def _to_gradient(
    tile: torch.Tensor,
    targets: torch.Tensor,
    log_total: torch.Tensor,
    grad: torch.Tensor,
    start: int,
    softcap: float | None,
) -> None:
    """A tile of logits becomes the gradient of the loss with respect to it, in place."""
    bent = None if softcap is None else torch.tanh(tile.float() / softcap)
    logits = tile.float() if bent is None or softcap is None else softcap * bent
    own = torch.arange(start, start + tile.shape[1], device=tile.device) == targets.unsqueeze(-1)
    slope = grad.unsqueeze(-1) * (own.float() - torch.exp(logits - log_total.unsqueeze(-1)))
    tile.copy_(slope if bent is None else slope * (1 - bent * bent))
