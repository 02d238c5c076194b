"""A causal convolution by causal-conv1d's kernel: what 1.7.0 makes and saves, allocation by allocation
(causal_conv1d_interface.py, cpp_functions.py; csrc/causal_conv1d.cpp, read: it is CUDA code, and allocates
nothing itself unless deterministic algorithms are asked for).

B batch, D channels, T tokens, W taps.
"""

from __future__ import annotations

from typing import Any

import torch


class CausalConvolution(torch.autograd.Function):
    """x (B, D, T) convolved along T with a weight (D, W), and its activation: saves x (causal-conv1d 1.7.0
    causal_conv1d_interface.py CausalConv1dFn).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The output, laid out as x is."""
        if 1 not in (x.stride(1), x.stride(2)):
            x = x.contiguous()
        ctx.save_for_backward(x, weight, bias)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """The gradients of x, weight and bias, the last two summed in fp32 whether they train or not."""
        x, weight, bias = ctx.saved_tensors
        if 1 not in (grad.stride(1), grad.stride(2)):
            grad = grad.contiguous()
        return gradients(x, weight, bias, grad)


def gradients(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    grad: torch.Tensor,
    dx: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The gradients of x, into `dx` where that is given, of weight and of bias
    (causal_conv1d_bwd_function).
    """
    if dx is None:
        dx = torch.empty_like(x)
    dweight = torch.zeros_like(weight, dtype=torch.float32)
    dbias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
    _launched(x, grad)
    dweight = dweight.type_as(weight)
    if bias is not None and dbias is not None:
        dbias = dbias.type_as(bias)
    return dx, dweight, dbias


def _launched(x: torch.Tensor, grad: torch.Tensor) -> None:
    """The kernel copies a gradient that is not laid out as x is, and drops the copy."""
    lasting = x.stride(1) == 1 and x.stride(2) > 1
    if lasting and grad.stride(1) != 1:
        grad.transpose(1, 2).contiguous()
    elif not lasting and grad.stride(2) != 1:
        grad.contiguous()


def convolved(
    hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *_: Any, **__: Any
) -> Any:
    """causal_conv1d_fn, as a modeling file calls it."""
    return CausalConvolution.apply(hidden_states, weight, bias)


def updated(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """causal_conv1d_update: one more token (B, D, 1), the state written over in place."""
    return torch.empty_like(hidden_states)
