"""CPU_RULES: what CPU kernels allocate unseen, for traces of the CPU device. One row an op, each with the
file that says so.

oneDNN's scratchpads (bfloat16 products) and the packing buffers of the CPU's fused attention are left out:
their sizes depend on the processor's instruction set and the number of threads. They live inside one op;
measurements list them as unmatched events.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor

from memplan.planner.trace.device.rule import KernelRule, OpCall, Workspace

_ITERATOR = (
    "TensorIterator.cpp compute_types: on CPU, operands that are not of the common dtype are cast into "
    "temporaries"
)
_REDUCE = "native/ReduceOpsUtils.h make_reduction: off CUDA the input is cast to the result's dtype first"
_BNB = "bitsandbytes 0.50 backends/default/ops.py _gemm_4bit_default_impl, which serves the CPU"


def _promoted(c: OpCall) -> Iterator[Workspace]:
    """Temporaries in the common dtype: of an in-place op's output first, then of each input that needs a
    cast.
    """
    left, right = c.args[0], c.args[1] if len(c.args) > 1 else c.args[0]
    common = torch.result_type(left, right)
    if c.outputs and c.outputs[0] is left and left.dtype != common:
        yield Workspace(f"{common} result before the cast", left.numel() * common.itemsize, before=True)
    for operand in (left, right):
        if isinstance(operand, Tensor) and operand.dtype != common and operand.dim() > 0:
            yield Workspace(
                f"{str(common)[6:]} copy of an operand", operand.numel() * common.itemsize, before=True
            )


def _reduced(c: OpCall) -> Iterator[Workspace]:
    (source, result) = (c.args[0], c.outputs[0])
    if source.dtype != result.dtype and source.is_floating_point():
        yield Workspace(
            f"{str(result.dtype)[6:]} copy of the input", source.numel() * result.element_size(), before=True
        )


def _gemm_4bit(c: OpCall) -> Iterator[Workspace]:
    """The weights dequantized in the input's dtype; with nested statistics, the fp32 block maxima twice."""
    inputs, shape = c.args[0], c.args[2]
    nested = c.args[7] if len(c.args) > 7 else None
    if nested is not None:
        yield Workspace("dequantized absmax", nested.numel() * 4, before=True)
        yield Workspace("absmax plus offset", nested.numel() * 4, before=True)
    yield Workspace("dequantized weights", prod(shape) * inputs.element_size(), before=True)


CPU_RULES: dict[str, KernelRule] = {
    **{
        f"aten::{name}{place}": KernelRule(_ITERATOR, _promoted)
        for name in ("add", "sub", "mul", "div", "pow")
        for place in ("", "_")
    },
    **{f"aten::{name}": KernelRule(_REDUCE, _reduced) for name in ("sum", "mean", "prod")},
    "bitsandbytes::gemm_4bit": KernelRule(_BNB, _gemm_4bit),
}


def layer_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """CPU's statistics are of the weight's dtype, CUDA's and meta's are fp32 (native/layer_norm.cpp
    layer_norm_cpu, torch 2.13).
    """
    out, mean, rstd = func(*args, **kwargs)
    source, weight = args[0], args[2]
    kept = source.dtype if weight is None else weight.dtype
    return (out, *(t if t.dtype == kept else torch.empty_like(t, dtype=kept) for t in (mean, rstd)))
