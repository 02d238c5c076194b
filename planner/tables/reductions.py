"""How a CUDA reduction splits its outputs over thread blocks, and the buffer in which the blocks meet:
setReduceConfig of native/cuda/Reduce.cuh (torch 2.13), for dense inputs within 32-bit indexing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Dimension = tuple[int, int, bool]
"""Of TensorIterator's dimensions: size, stride in elements, whether it is reduced."""
MAX_THREADS = 512
THREADS_PER_SM = {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536, (12, 0): 1536, (12, 1): 1536}
"""maxThreadsPerMultiProcessor where it is not 2048 (CUDA programming guide, technical specifications by
compute capability).
"""


def staging(
    dims: Sequence[Dimension], element_size: int, accumulate: int, sms: int, threads_per_sm: int
) -> tuple[int, int]:
    """(bytes of the staging buffer, bytes of the semaphores) of a reduction over `dims`, reduced ones first;
    (0, 0) where each output stays within one block. `element_size`: of the input, `accumulate`: of a sum.
    """
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
        first //= 8 if element_size == 2 else 4
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


def _output_vector(dims: Sequence[Dimension], inner: int) -> int:
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


def _last_power(n: int) -> int:
    return 1 << (max(1, n).bit_length() - 1)


def _up(a: int, b: int) -> int:
    return -(-a // b)
