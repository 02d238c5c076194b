"""What an older torch's meta kernels do not answer as CUDA does: attention whose key heads are fewer than its
query heads, and grouped products; which grouped product a GPU's compute capability allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.gpus import GROUPED_MM
from memplan.planner.trace.device.target import target_of
from memplan.planner.trace.observe import Observer


def grouped_heads(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Memory-efficient attention's backward with fewer key than query heads: CUDA has it from torch 2.14 on,
    an older torch's meta kernel answers with one gradient for each query head. Rows lie before heads in
    memory, as the kernel lays them out; a mask is a constant.
    """
    tensors = args[1:4]
    if not tensors[0].is_meta or len({tensor.shape[1] for tensor in tensors}) == 1 or args[10][3]:
        return NotImplemented
    made = (
        torch.empty_permuted(each.shape, (0, 2, 1, 3), dtype=each.dtype, device="meta") for each in tensors
    )
    return (*made, None)


def grouped_mm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """torch 2.13 _meta_registrations.py refuses what CUDA takes (fp16, fp32). Rows of the output are padded
    to 16 bytes, as aten/src/ATen/native/GroupedMMUtils.h create_grouped_gemm_output_tensor does.
    """
    a, b = args[0], args[1]
    offsets: Any = args[2] if len(args) > 2 else kwargs.get("offs")
    if not a.is_meta or a.dtype == torch.bfloat16:
        return NotImplemented
    batch = (
        (offsets.shape[0],) if a.dim() == b.dim() == 2 else (a.shape[0],) if a.dim() == b.dim() == 3 else ()
    )
    rows, columns = a.shape[-2], b.shape[-1]
    unit = 16 // a.element_size()
    stride = -(-columns // unit) * unit
    return torch.empty_strided(
        (*batch, rows, columns),
        (*((rows * stride,) if batch else ()), stride, 1),
        dtype=a.dtype,
        device="meta",
    )


@contextmanager
def by_capability(observer: Observer, setup: Setup) -> Iterator[None]:
    """transformers 5.24 integrations/moe.py _can_use_grouped_mm asks the GPU, which meta is not: below
    compute capability 8.0 a loop of its own multiplies, whose backward makes the weights' gradient, wanted
    or not.
    """
    from transformers.integrations import moe

    target = target_of(setup)
    if target.device != "cuda" or target.capability >= GROUPED_MM:
        yield
        return
    with patch.object(moe, "_can_use_grouped_mm", lambda *arguments: False):
        yield
