"""Where TRL's chunked loss runs."""

from __future__ import annotations

LEAST = (8, 0)


def refuses_chunked_loss(capability: tuple[int, int], dtype: str) -> str | None:
    """Why the loss in tiles cannot run, None where it can: its backward sums products of bfloat16 in float32 in
    one kernel (trl 1.16 kernels/chunked_logprob.py _addmm_fp32), which torch 2.11 to 2.14 refuses below compute
    capability 8.0 (aten/src/ATen/cuda/CUDABlas.cpp; dry runs end there). float16 runs.
    """
    if dtype != "bfloat16" or capability >= LEAST:
        return None
    return (
        f"TRL's chunked loss in bfloat16 needs compute capability 8.0 or later, found {capability[0]}."
        f"{capability[1]}: use --loss full, or --dtype float16"
    )
