"""Liger's kernels in place of a model's own operations: what liger-kernel 0.8.5 makes, saves and writes over,
allocation by allocation (ops/rms_norm.py, swiglu.py, geglu.py, rope.py, cross_entropy.py;
transformers/monkey_patch.py puts them there).

A kernel's launch allocates nothing, so nothing is computed here: Triton runs on a GPU alone, and no number
moves memory. B batch, S sequence, H hidden, I intermediate, N tokens, V vocabulary, M multiprocessors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.fused_kernels import LIGER, multiprocessors, swapped


def of(base: nn.Module, setup: Setup) -> frozenset[str]:
    """The kernels that are swapped into a transformers model."""
    return swapped(str(base.config.model_type), setup.fused_kernels)  # type: ignore[union-attr]


def install(base: nn.Module, setup: Setup) -> None:
    """Give a model's norms and gated MLPs their kernels, as Liger binds them to a model that exists."""
    kernels = of(base, setup)
    if not kernels:
        return
    row, rows = LIGER[str(base.config.model_type)], multiprocessors(setup.gpu)  # type: ignore[union-attr]

    def norm(self: Any, hidden_states: torch.Tensor) -> Any:
        return RmsNorm.apply(hidden_states, self.weight, row.in_place, rows)

    def joined(self: Any, x: torch.Tensor) -> Any:
        states = self.gate_up_proj(x)
        gate, states = states.chunk(2, dim=-1)
        return self.down_proj(_gated(gate, states))

    def apart(self: Any, x: torch.Tensor) -> Any:
        return self.down_proj(_gated(self.gate_proj(x), self.up_proj(x)))

    def geglu(self: Any, x: torch.Tensor) -> Any:  # called without a function between, which names both
        return self.down_proj(GatedProduct.apply(self.gate_proj(x), self.up_proj(x)))

    for module in base.modules():
        name = type(module).__name__
        if "rms_norm" in kernels and name.endswith("RMSNorm"):
            module.forward = MethodType(norm, module)
        elif "glu" in kernels and name.endswith("MLP"):
            forward = joined if hasattr(module, "gate_up_proj") else geglu if row.geglu else apart
            module.forward = MethodType(forward, module)


@contextmanager
def functions(base: nn.Module, setup: Setup) -> Iterator[None]:
    """While active, the functions that a model's code looks up are the kernels'."""
    kernels, code = of(base, setup), sys.modules[type(base).__module__]
    with ExitStack() as stack:
        if "rope" in kernels:
            stack.enter_context(patch.object(code, "apply_rotary_pos_emb", _rotated))
        if "cross_entropy" in kernels:
            stack.enter_context(patch.object(nn.functional, "cross_entropy", _cross_entropy))
        yield


class RmsNorm(torch.autograd.Function):
    """RMSNorm of x (..., H) with a weight (H): saves x, the weight and one fp32 number for each row; the
    gradient of x is written over the incoming one, that of the weight summed from M fp32 rows.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, in_place: bool, rows: int) -> torch.Tensor:
        """The output, in the dtype of x whatever the weight's is."""
        flat = x.contiguous().view(-1, x.shape[-1])
        out = torch.empty(flat.shape, dtype=flat.dtype, device=flat.device)
        scale = torch.empty(flat.shape[0], dtype=torch.float32, device=flat.device)
        ctx.save_for_backward(flat, weight, scale)
        ctx.in_place, ctx.rows = in_place, rows
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """The gradients of x and of a trained weight."""
        grad = grad.contiguous()  # outlives what was saved
        return _of_norm(ctx, grad)


def _of_norm(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    flat, weight, scale = ctx.saved_tensors
    given, made = grad.view(-1, grad.shape[-1]), (ctx.rows, flat.shape[-1])
    trained = ctx.needs_input_grad[1]
    parts = torch.empty(made, dtype=torch.float32, device=weight.device) if trained else None
    result = (given if ctx.in_place else torch.zeros_like(given)).view(grad.shape)
    return result, None if parts is None else parts.sum(dim=0).to(weight.dtype), None, None


class GatedProduct(torch.autograd.Function):
    """act(gate) * up of two (..., I): saves both, and writes their gradients over them."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """The product; halves of one tensor are copied apart first."""
        shape = gate.shape
        gate, up = gate.contiguous(), up.contiguous()
        gate, up = gate.view(-1, shape[-1]), up.view(-1, shape[-1])
        out = torch.empty_like(gate)
        ctx.save_for_backward(gate, up)
        return out.view(shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        """What was saved, now the gradients."""
        gate, up = ctx.saved_tensors
        shape = grad.contiguous().shape
        return gate.view(shape), up.view(shape)


def _gated(gate: torch.Tensor, up: torch.Tensor) -> Any:
    return GatedProduct.apply(gate, up)


class Rotary(torch.autograd.Function):
    """Queries (B, A, S, D) and keys (B, K, S, D) rotated where they lie, token by token; other layouts are
    copied into that one first, gradients too.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both, rotated; saves cos and sin."""
        made = [x.transpose(1, 2).contiguous() for x in (q, k)]
        ctx.save_for_backward(cos.contiguous(), sin.contiguous())
        return made[0].transpose(1, 2), made[1].transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """The gradients rotated back, in place."""
        cos, sin = ctx.saved_tensors
        made = [grad.transpose(1, 2).contiguous() for grad in grads]
        del cos, sin
        return made[0].transpose(1, 2), made[1].transpose(1, 2), None, None


def _rotated(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any) -> Any:
    return Rotary.apply(q, k, cos, sin)


class CrossEntropy(torch.autograd.Function):
    """Cross-entropy of logits (N, V) and labels (N), summed or as a mean: the gradient is written over the
    logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, ignored: int) -> torch.Tensor:
        """The loss; saves the logits, which hold their gradient by then."""
        losses = torch.zeros(logits.shape[0], dtype=logits.dtype, device=logits.device)
        scored = labels != ignored
        _asked(scored.sum())
        _asked((labels * scored).max() < logits.shape[-1])
        _asked((labels * scored).min() >= 0)
        ctx.save_for_backward(logits.detach())
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """What was saved, scaled in place."""
        (logits,) = ctx.saved_tensors
        _asked(torch.tensor(1.0, device=grad.device))  # is the incoming gradient one?
        return logits, None, None


def _asked(value: torch.Tensor) -> None:
    """What the host reads of a tensor and drops."""


def _cross_entropy(
    input: torch.Tensor, target: torch.Tensor, *_: Any, ignore_index: int = -100, **__: Any
) -> Any:
    return CrossEntropy.apply(input, target, ignore_index)
