"""What matrix products on CUDA allocate beyond their outputs, and whose workspace they take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from memplan.planner.trace.device.rule import OpCall, Workspace, bytes_of


def _unfit_for_cublas(matrix: Any) -> bool:
    """prepare_matrix_for_cublas, prepare_batch_matrix_for_cublas: neither of the last two dimensions is
    dense, or they overlap.
    """
    if not isinstance(matrix, Tensor) or matrix.dim() < 2 or matrix.numel() == 0:
        return False
    (rows, columns), (down, along) = matrix.shape[-2:], matrix.stride()[-2:]
    row_major = (along == 1 or columns == 1) and down >= max(1, columns)
    column_major = (down == 1 or rows == 1) and along >= max(1, rows)
    return not (row_major or column_major)


def copies_for_cublas(c: OpCall) -> Iterator[Workspace]:
    """A contiguous copy of each operand whose strides cuBLAS does not take."""
    for operand in c.args[-2:] if len(c.args) > 2 else c.args:
        if _unfit_for_cublas(operand):
            yield Workspace("contiguous copy for cuBLAS", bytes_of(operand))


def product(c: OpCall) -> str:
    """The library that runs a product: cuBLAS, but cuBLASLt for an addmm whose bias is one row
    (isInputCompliesAddmmCudaLt).
    """
    if len(c.args) < 3 or not all(isinstance(arg, Tensor) and arg.is_floating_point() for arg in c.args[:3]):
        return "cublas"
    bias, left, right = c.args[:3]
    row = bias.dim() > 0 and bias.numel() == bias.shape[-1] and bias.is_contiguous()
    fused = (
        row
        and left.dim() == right.dim() == 2
        and bias.shape[-1] == right.shape[1]
        and min(*left.shape, *right.shape) > 1
    )
    return "cublaslt" if fused else "cublas"


def grouped(c: OpCall) -> Iterator[Workspace]:
    """CUTLASS's tables on sm90 and sm100 (native/cuda/GroupMM.cu bf16bf16_grouped_gemm_impl_sm90_sm100):
    60 bytes of pointers and strides a group, and the kernel's workspace, so much for each multiprocessor
    (tensor maps; on sm100 by the tile, which is small where a group has up to 128 rows or columns). Sizes
    as CUTLASS's own get_workspace_size answered over stub libraries: 2.11.0 (H100), 2.14.1 (H100, B200).
    """
    left, right = c.args[0], c.args[1]
    offsets = c.args[2] if len(c.args) > 2 else None
    major = c.target.capability[0]
    if c.target.capability not in ((9, 0), (10, 0)) or left.dtype != torch.bfloat16:
        return
    groups = offsets.numel() if isinstance(offsets, Tensor) else left.shape[0]
    rows, columns = left.shape[-2], right.shape[-1]
    if left.dim() == 2 and right.dim() == 3:
        rows //= groups
    elif left.dim() == 3 and right.dim() == 2:
        columns //= groups
    each = 512 if major == 9 else 5376 if min(rows, columns) <= 128 else 5888
    yield Workspace("pointers of the groups", 60 * groups, last=True)
    yield Workspace("grouped product's workspace", c.target.sms * each)


def grouped_product(c: OpCall) -> str:
    """cuBLAS where the groups are multiplied one by one; CUTLASS takes no workspace of a handle."""
    return "" if any(grouped(c)) else product(c)
