"""Composite ops that take another branch where `is_cuda()`: on meta they would decompose as on the CPU, with
other tensors saved.

`as_on_cuda()` gives these ops their CUDA decomposition on meta tensors, for every caller, through the
dispatcher. Undone on exit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _softmax(tensor: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """native/SoftMax.cpp softmax: fp16 in, fp32 wanted is one fused kernel (half_to_float); nothing else
    is.
    """
    if tensor.dtype == torch.float16 and dtype == torch.float32:
        return aten._softmax.default(tensor, dim, True)
    return aten._softmax.default(tensor if dtype is None else tensor.to(dtype), dim, False)


def _log_softmax(tensor: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """native/SoftMax.cpp log_softmax: as softmax."""
    if tensor.dtype == torch.float16 and dtype == torch.float32:
        return aten._log_softmax.default(tensor, dim, True)
    return aten._log_softmax.default(tensor if dtype is None else tensor.to(dtype), dim, False)


def _dropout(tensor: Tensor, p: float, train: bool) -> Tensor:
    """native/Dropout.cpp dropout: the fused kernel saves a mask of one byte an element, not noise of the
    input's dtype.
    """
    if p == 0 or not train or tensor.numel() == 0:
        return tensor
    if p == 1:
        return tensor.mul(torch.zeros((), dtype=tensor.dtype, device=tensor.device))
    return aten.native_dropout.default(tensor, p, train)[0]


def _rms_norm(
    tensor: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """native/layer_norm.cpp rms_norm: fused where the weight has the input's dtype, else the composite of
    fp32 ops.
    """
    if weight is None or weight.dtype == tensor.dtype:
        return _FusedRmsNorm.apply(tensor, weight, len(normalized_shape))
    return _composite_rms_norm(tensor, normalized_shape, weight, eps)


def _composite_rms_norm(
    tensor: Tensor, normalized_shape: Any, weight: Tensor | None, eps: float | None
) -> Tensor:
    """native/layer_norm.cpp rms_norm_composite: squares, mean and product in fp32 for 16-bit inputs."""
    wide = tensor.to(torch.float32) if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    dims = list(range(-len(normalized_shape), 0))
    result = wide.mul(torch.rsqrt(wide.pow(2).mean(dims, keepdim=True).add_(eps or 0.0)))
    if weight is not None:
        result = result.mul(weight)
    return result.to(tensor.dtype)


class _FusedRmsNorm(torch.autograd.Function):  # type: ignore[misc]
    """_fused_rms_norm and its backward (native/cuda/layer_norm_kernel.cu): saves the input, the weight and
    one fp32 number a row.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, weight: Tensor | None, dims: int) -> Tensor:
        out = torch.empty_like(tensor)
        rstd = torch.empty((*tensor.shape[:-dims], *(1,) * dims), dtype=torch.float32, device=tensor.device)
        ctx.save_for_backward(tensor, rstd, weight)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        tensor, _, weight = ctx.saved_tensors
        return torch.empty_like(tensor), torch.empty_like(weight) if ctx.needs_input_grad[1] else None, None


BRANCHES: dict[str, Callable[..., Tensor]] = {
    "softmax.int": _softmax,
    "log_softmax.int": _log_softmax,
    "dropout": _dropout,
    "rms_norm": _rms_norm,
}


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Within it, each op of BRANCHES decomposes on meta tensors as it does on CUDA."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library says that a kernel is overridden: that is the point
        for name, branch in BRANCHES.items():
            library.impl(name, branch, "AutogradMeta")
    try:
        yield
    finally:
        library._destroy()
