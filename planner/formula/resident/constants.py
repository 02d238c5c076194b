"""What stands beside a quantized weight: scales, codes, zero points."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.planner.formula.resident.parameter_spec import ParameterSpec
from memplan.planner.formula.rows import SymbolicRow
from memplan.planner.formula.symbolic.expr import Sized, ceil_div, product
from memplan.planner.inputs.quantized import Checkpoint
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.dtypes import itemsize

# constants for each fp32 constant of double quantization (bitsandbytes 0.50 functional.py quantize_4bit:
# blocksize=256)
NESTED_BLOCK = 256


def constants(stored: ParameterSpec, setup: Setup, checkpoint: Checkpoint | None) -> Iterator[SymbolicRow]:
    """Quantization constants: per 4-bit block an fp32 absmax, or with double quantization a byte each and
    an fp32 per 256 of them; of a format of its own what the checkpoint says.
    """

    def row(what: str, shape: tuple[Sized, ...], dtype: str, why: str) -> SymbolicRow:
        return SymbolicRow(
            f"{stored.name} {what}",
            shape,
            dtype,
            stored.count,
            product((*shape, itemsize(dtype), stored.count)),
            "weights",
            why,
        )

    if checkpoint is not None and stored.dtype == checkpoint.dtype:
        for what, shape, dtype, why in checkpoint.constants(matrix(stored)):
            yield row(what, shape, dtype, why)
    if stored.dtype == "int8":
        yield row("scales", (stored.shape[0],), "float32", "one scale per output row (LLM.int8())")
    if stored.dtype not in ("nf4", "fp4"):
        return
    blocks = ceil_div(stored.elements, setup.quant_block).constant or 0
    yield row(
        "4-bit code",
        (16,),
        "float32",
        "the 16 values that a 4-bit index means (bitsandbytes QuantState.code)",
    )
    if not setup.double_quant:
        yield row(
            "quantization constants",
            (blocks,),
            "float32",
            f"absmax of each block of {setup.quant_block}",
        )
        return
    yield row(
        "quantization constants",
        (blocks,),
        "uint8",
        f"absmax of each block of {setup.quant_block}, quantized again",
    )
    yield row(
        "nested code",
        (256,),
        "float32",
        "the values that a quantized constant means: each weight keeps a copy",
    )
    yield row(
        "nested constants", (-(-blocks // NESTED_BLOCK),), "float32", f"one per {NESTED_BLOCK} constants"
    )
    yield row("nested offset", (1,), "float32", "the mean that was taken off the constants")


def matrix(stored: ParameterSpec) -> tuple[int, ...]:
    """The shape of a base weight with its outputs before its inputs."""
    *first, rows, columns = (size for size in stored.shape if isinstance(size, int))
    return (*first, columns, rows) if stored.role == "conv1d" else (*first, rows, columns)
