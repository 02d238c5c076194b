"""The global-memory buffers of CUDA reductions: setReduceConfig of native/cuda/Reduce.cuh (torch 2.13), for
dense inputs.

A reduction with few outputs and many inputs splits each output over thread blocks, which meet in a buffer.
Left out: inputs beyond 32-bit indexing, which are reduced in parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from memplan.planner.trace.device.rule import OpCall, Workspace

MAX_THREADS = 512
THREADS_PER_SM = {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536, (12, 0): 1536, (12, 1): 1536}
"""maxThreadsPerMultiProcessor where it is not 2048 (CUDA programming guide, technical specifications by
compute capability).
"""


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


def _coalesced(source: Tensor, reduced: list[bool]) -> list[tuple[int, int, bool]]:
    """TensorIterator's dimensions (size, stride, reduced): reduced ones first, fastest first, neighbors
    merged; sizes of 1 dropped.
    """
    dims = [(s, st, r) for s, st, r in zip(source.shape, source.stride(), reduced, strict=True) if s != 1]
    dims.sort(key=lambda d: (not d[2], d[1]))
    merged: list[tuple[int, int, bool]] = []
    for size, stride, flag in dims:
        if merged and merged[-1][2] == flag and merged[-1][0] * merged[-1][1] == stride:
            merged[-1] = (merged[-1][0] * size, merged[-1][1], flag)
        else:
            merged.append((size, stride, flag))
    return merged


def _last_power(n: int) -> int:
    return 1 << (max(1, n).bit_length() - 1)


def _up(a: int, b: int) -> int:
    return -(-a // b)


def buffers(
    source: Tensor, reduced: list[bool], accumulate: int, sms: int, threads_per_sm: int
) -> tuple[int, int]:
    """(bytes of the staging buffer, bytes of the semaphores); (0, 0) where each output stays within one
    block.
    """
    dims = _coalesced(source, reduced)
    inner = sum(1 for d in dims if d[2])
    if inner == 0:
        return 0, 0
    inputs = math.prod(size for size, _, flag in dims if flag)
    outputs = math.prod(size for size, _, flag in dims if not flag)
    along = (
        inner == len(dims) or dims[0][1] < dims[inner][1]
    )  # a warp reads inputs, not outputs, side by side
    vector = 1 if along else _output_vector(dims, inner)
    first, second = (inputs, outputs) if along else (outputs // vector, inputs)
    if along and dims[0][1] == 1 and inputs >= 128 and inner == 1:
        # input_vec_size of ReduceSumProdKernel.cu, ReduceMomentKernel.cu
        first //= 8 if source.element_size() == 2 else 4
    width, height = _block(first, second, MAX_THREADS // vector)
    step_input, step_output = (width, 1) if along else (1, width)
    across_warps = _up(inputs, step_input) >= min(height * 16, 256)
    if across_warps:
        step_input *= height
    else:
        step_output *= height
    grid, values = _up(outputs // vector, step_output), _up(inputs, step_input)
    blocks = _blocks_per_output(values, grid, sms * (threads_per_sm // (width * height)))
    if not across_warps or blocks <= 1:
        return 0, 0
    return accumulate * outputs * blocks * (1 if along else width * vector), 4 * grid


def _output_vector(dims: list[tuple[int, int, bool]], inner: int) -> int:
    """How many outputs one thread reduces side by side (`setReduceConfig`, output_vec_size): what divides the
    outputs' fastest dimension and every other stride, at most 4.
    """
    if dims[inner][1] != 1:
        return 1
    vector = 4
    for number in (dims[inner][0], *(stride for i, (_, stride, _) in enumerate(dims) if i != inner)):
        while number % vector:
            vector //= 2
    return vector


def _block(first: int, second: int, most: int) -> tuple[int, int]:
    """(width, height) of a thread block (`set_block_dimension`)."""
    width_limit, height_limit = (_last_power(n) if n < most else most for n in (first, second))
    height = min(height_limit, most // min(width_limit, 32))
    return min(width_limit, most // height), height


def _blocks_per_output(values: int, grid: int, target_grid: int) -> int:
    """Over how many thread blocks one output is split; 1 where it is not."""
    if values < 256 or grid > target_grid:
        return 1
    return max(min(_up(target_grid, grid), _up(values, 16)), _up(values, 256))
