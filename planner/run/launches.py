"""What the launch of a Triton kernel allocates beside its operands: nothing, but for the first of a kernel
that chooses among variants of itself.
"""

from __future__ import annotations

import torch

from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.fused_kernels import multiprocessors

CACHE_BYTES = 256 * 2**20
"""triton 3.9 backends/nvidia/driver.py get_empty_cache_for_benchmark: what testing.py do_bench writes over
before each run that it times, so that the L2 cache holds no operand."""


class Launches:
    """The launches of one process, on the multiprocessors of the setup's GPU."""

    def __init__(self, setup: Setup) -> None:
        self.processors = multiprocessors(setup.gpu)
        self._seen: set[tuple[object, ...]] = set()

    def __call__(self, kernel: str, *operands: torch.Tensor | None) -> None:
        """A launch of an autotuned kernel. Its first one on operands of these dtypes times every variant,
        each with `CACHE_BYTES` that are dropped at once (triton 3.9 runtime/autotuner.py); sizes of one model
        are equal, so that they tell no two launches apart. A process whose TRITON_CACHE_AUTOTUNING keeps what
        an earlier one chose would not.
        """
        given = [operand for operand in operands if operand is not None]
        key = (kernel, *(operand.dtype for operand in given))
        if key not in self._seen:
            self._seen.add(key)
            torch.empty(CACHE_BYTES // 4, dtype=torch.int32, device=given[0].device)
