"""The global-memory buffers of CUDA reductions: setReduceConfig of native/cuda/Reduce.cuh (torch 2.13), for
dense inputs.

A reduction with few outputs and many inputs splits each output over thread blocks, which meet in a buffer.
Left out: inputs beyond 32-bit indexing, which are reduced in parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from memplan.planner.tables.reductions import THREADS_PER_SM, Dimension, staging
from memplan.planner.trace.device.rule import OpCall, Workspace


def reduction(c: OpCall) -> Iterator[Workspace]:
    """Staging buffer and semaphores of one sum, mean, norm, amax, ... : the first argument is reduced to the
    output's elements.
    """
    source, out = c.args[0], c.outputs[0]
    if not isinstance(source, Tensor) or source.numel() == 0 or out.numel() == 0:
        return
    yield from _staging(c, source)


def converted(c: OpCall) -> Iterator[Workspace]:
    """`reduction` of sums, products and means, whose input is first converted to the result's dtype unless it
    is 16-bit and the result fp32 (native/ReduceOpsUtils.h make_reduction: gpu_lowp_to_f32): a count of
    Booleans sums an int64 copy of them.
    """
    source, out = c.args[0], c.outputs[0]
    if not isinstance(source, Tensor) or source.numel() == 0 or out.numel() == 0:
        return
    in_registers = source.dtype in (torch.float16, torch.bfloat16) and out.dtype == torch.float32
    if source.dtype != out.dtype and not in_registers:
        yield Workspace("input in the result's dtype", source.numel() * out.element_size(), last=True)
        source = torch.empty(source.shape, dtype=out.dtype, device="meta")
    yield from _staging(c, source)


def _staging(c: OpCall, source: Tensor) -> Iterator[Workspace]:
    out = c.outputs[0]
    accumulate = max(4, source.element_size()) if source.is_floating_point() else source.element_size()
    buffer, semaphores = buffers(
        source, _reduced(c.args, out), accumulate, c.target.sms, THREADS_PER_SM.get(c.target.capability, 2048)
    )
    yield Workspace("partial results", buffer, last=True)
    yield Workspace("semaphores", semaphores)


def _reduced(args: tuple[Any, ...], out: Tensor) -> list[bool]:
    """Which dimensions of the source are reduced: the list of dimensions among the arguments, else what the
    output's shape says.
    """
    source = args[0]
    listed = next((arg for arg in args[1:] if isinstance(arg, (list, tuple))), None)
    if listed:
        dims = {dim % source.dim() for dim in listed}
        return [dim in dims for dim in range(source.dim())]
    if out.dim() == source.dim():
        return [have != want for have, want in zip(source.shape, out.shape, strict=True)]
    kept = list(out.shape)
    flags = [not (kept and kept[-1] == size and bool(kept.pop())) for size in reversed(source.shape)]
    return flags[::-1]


def _coalesced(source: Tensor, reduced: list[bool]) -> list[Dimension]:
    """TensorIterator's dimensions (size, stride, reduced): reduced ones first, fastest first, neighbors
    merged; sizes of 1 dropped.
    """
    dims = [(s, st, r) for s, st, r in zip(source.shape, source.stride(), reduced, strict=True) if s != 1]
    dims.sort(key=lambda d: (not d[2], d[1]))
    merged: list[Dimension] = []
    for size, stride, flag in dims:
        if merged and merged[-1][2] == flag and merged[-1][0] * merged[-1][1] == stride:
            merged[-1] = (merged[-1][0] * size, merged[-1][1], flag)
        else:
            merged.append((size, stride, flag))
    return merged


def buffers(
    source: Tensor, reduced: list[bool], accumulate: int, sms: int, threads_per_sm: int
) -> tuple[int, int]:
    """(bytes of the staging buffer, bytes of the semaphores); (0, 0) where each output stays within one
    block.
    """
    return staging(_coalesced(source, reduced), source.element_size(), accumulate, sms, threads_per_sm)
