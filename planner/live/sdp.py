"""Which backend scaled_dot_product_attention takes on CUDA: the filters of PyTorch's own selection, as a table.

Source: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (read at 2026-09, against the header of torch 2.13) and
aten/src/ATen/native/transformers/sdp_utils_cpp.h. Filters about nested tensors, ROCm and disabled backends are left out: they do not
occur in the training steps modelled here. Order: flash, efficient, math; on Hopper and datacenter Blackwell cuDNN comes first
(check_prefer_cudnn_attention: cuDNN newer than 9.15, which torch's wheels since 2.11 ship). Those for CUDA 12 ship an older cuDNN
(PyTorch issue 169849) and take flash there: the two save the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from planner.live.target import Target

BACKENDS = ("cudnn", "flash", "efficient", "math")
HALF = (torch.float16, torch.bfloat16)
Check = Callable[["Call"], bool]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of scaled_dot_product_attention: (batch, heads, sequence, head size) tensors and its options, on a target."""

    target: Target
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None = None
    dropout: float = 0.0
    causal: bool = False
    gqa: bool = False

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.query, self.key, self.value

    @property
    def heads(self) -> tuple[int, int, int]:
        return self.query.shape[-3], self.key.shape[-3], self.value.shape[-3]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Head sizes of query, key and value."""
        return self.query.shape[-1], self.key.shape[-1], self.value.shape[-1]

    @property
    def trains(self) -> bool:
        return torch.is_grad_enabled() and any(t.requires_grad for t in self.tensors)


@cache
def native_gqa_in_efficient() -> bool:
    """Whether the memory-efficient kernel takes grouped heads: pytorch PR 191085; torch 2.13 and older refuse them.

    Read from the C++ header that the installed torch ships: its filter template got a parameter in that change.
    """
    header = Path(torch.__file__).parent / "include/ATen/native/transformers/sdp_utils_cpp.h"
    return header.is_file() and "supports_mqa" in header.read_text(encoding="utf-8", errors="replace")


def _four_dimensions(c: Call) -> bool:
    return all(t.dim() == 4 for t in c.tensors)


def _same_batch(c: Call) -> bool:
    return len({t.shape[0] for t in c.tensors}) == 1


def _equal_heads(c: Call) -> bool:
    return len(set(c.heads)) == 1


def _grouped(c: Call) -> bool:
    """check_grouped_query_attention: key and value alike, dividing the query's heads."""
    q, k, v = c.heads
    return k == v and q % k == 0


def _heads_flash(c: Call) -> bool:
    return _same_batch(c) and (_grouped(c) if c.gqa else _equal_heads(c))


def _heads_cudnn(c: Call) -> bool:
    q, k, v = c.heads
    return _same_batch(c) and ((q % k == 0 and q % v == 0) if c.gqa else _equal_heads(c))


def _heads_efficient(c: Call) -> bool:
    return _same_batch(c) and (_grouped(c) if c.gqa and native_gqa_in_efficient() else _equal_heads(c))


def _unit_strides(c: Call) -> bool:
    return all(t.stride(-1) == 1 for t in c.tensors) and (c.mask is None or c.mask.stride(-1) == 1)


def _unit_strides_or_size_1(c: Call) -> bool:
    ok = all(t.stride(-1) == 1 for t in c.tensors) or c.query.shape[-1] == 1
    return bool(ok and (c.mask is None or c.mask.stride(-1) == 1))


def _not_empty(c: Call) -> bool:
    return bool(c.query.shape[-2] > 0 and c.key.shape[-2] > 0)


def _one_dtype(c: Call, allowed: tuple[torch.dtype, ...]) -> bool:
    return len({t.dtype for t in c.tensors}) == 1 and bool(c.query.dtype in allowed)


def _low_precision(c: Call) -> bool:
    return _one_dtype(c, HALF if c.target.capability >= (8, 0) else (torch.float16,))


def _efficient_dtypes(c: Call) -> bool:
    return _one_dtype(c, (torch.float16, torch.float32) if c.target.capability < (8, 0) else (*HALF, torch.float32))


def _ampere_to_blackwell(c: Call) -> bool:
    return (8, 0) <= c.target.capability <= (12, 1)


def _no_mask(c: Call) -> bool:
    return c.mask is None


def _flash_head_size(c: Call) -> bool:
    return len(set(c.sizes)) == 1 and c.sizes[0] <= 256


def _flash_trains_head_size(c: Call) -> bool:
    """sm86 to sm89 and sm120: no backward for sizes in (192, 224], nor in (224, 256] with dropout."""
    capability, size = c.target.capability, c.sizes[0]
    if not c.trains or not ((8, 6) <= capability <= (8, 9) or (12, 0) <= capability <= (12, 1)):
        return True
    return size <= 192 or (c.dropout == 0 and size > 224)


def _square_if_causal(c: Call) -> bool:
    return not c.causal or c.query.shape[-2] == c.key.shape[-2]


def gemm_alignment(c: Call) -> int:
    """minimum_gemm_alignment: elements that head sizes must be a multiple of."""
    half = c.query.dtype in HALF
    tensor_cores = c.target.capability >= (8, 0) or (c.target.capability >= (7, 0) and half)
    least = 4 if c.target.capability >= (8, 0) else 1
    return max(least, 128 // (16 if half else 32)) if tensor_cores else least


def _efficient_head_size(c: Call) -> bool:
    q, k, v = c.sizes
    step = gemm_alignment(c)
    return q == k and q % step == 0 and q > 0 and v % step == 0 and v > 0


def _mask_shape(c: Call) -> bool:
    """check_attn_mask_shape: two or four dimensions, each the target's or 1, no gradient."""
    if c.mask is None:
        return True
    if c.mask.requires_grad or c.mask.dim() not in (2, 4):
        return False
    wanted = (c.query.shape[0], c.query.shape[1], c.query.shape[2], c.key.shape[2])[-c.mask.dim() :]
    return all(bool(have in (1, want)) for have, want in zip(c.mask.shape, wanted, strict=True))


def _cudnn_dropout(c: Call) -> bool:
    return (c.dropout * 16).is_integer()


def _cudnn_shapes(c: Call) -> bool:
    """check_cudnn_tensor_shapes of torch 2.13: head sizes up to 128, multiples of 8; 192 with 128 for values on Hopper and Blackwell."""
    batch, heads, rows, size = c.query.shape
    value = c.sizes[2]
    hopper = c.target.capability == (9, 0) or c.target.capability[0] == 10
    limit = 192 if hopper and (size, value) == (192, 128) else 128
    if max(batch, heads) > 65535 or max(size, value) > limit or size % 8 or value % 8:
        return False
    return c.key.shape[2] != 1 and not (c.dropout and rows == 1)


CHECKS: dict[str, tuple[Check, ...]] = {
    "flash": (_four_dimensions, _no_mask, _flash_head_size, _ampere_to_blackwell, _flash_trains_head_size, _square_if_causal,
              _low_precision, _heads_flash, _not_empty, _unit_strides_or_size_1),
    "efficient": (_four_dimensions, _efficient_head_size, _not_empty, _unit_strides, _heads_efficient, _efficient_dtypes),
    "cudnn": (_four_dimensions, _low_precision, _mask_shape, _ampere_to_blackwell, _cudnn_dropout, _not_empty, _unit_strides_or_size_1,
              _heads_cudnn, _cudnn_shapes),
    "math": (),
}  # fmt: skip


def prefers_cudnn(target: Target) -> bool:
    """check_prefer_cudnn_attention: compute capabilities 9.0, 10.0 and 10.3."""
    return target.capability in ((9, 0), (10, 0), (10, 3))


def choose(call: Call, forced: str | None = None) -> str | None:
    """The backend CUDA takes: "cudnn", "flash", "efficient" or "math"; with `forced` (what `sdpa_kernel` allows) that one or None."""
    order = (forced,) if forced else BACKENDS if prefers_cudnn(call.target) else BACKENDS[1:]
    return next((backend for backend in order if all(check(call) for check in CHECKS[backend])), None)


def reason(call: Call, backend: str) -> str | None:
    """The first filter that refuses this call, None where the backend takes it."""
    return next((check.__name__.strip("_") for check in CHECKS[backend] if not check(call)), None)
