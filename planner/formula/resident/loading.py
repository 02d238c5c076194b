"""The moments before the first step: the peak while building, and what stays."""

from __future__ import annotations

from memplan.planner.formula.parameters import B, ParameterTable, S, packed_bytes
from memplan.planner.formula.rows import SymbolicRow
from memplan.planner.formula.symbolic.expr import Sized, product, total
from memplan.planner.inputs import tasks
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.dtypes import itemsize
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.optimizers import OPTIMIZERS
from memplan.planner.tables.tasks import TASKS

# Model types whose checkpoints hold every expert apart: gate and up are stacked, then joined (transformers
# 5.23 conversion_mapping.py).
EXPERTS_APART = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3")


def load_candidates(parameter_table: ParameterTable) -> dict[str, list[list[SymbolicRow]]]:
    """Rows of `load_peak` and `load`. Weights arrive tensor by tensor; a quantized one exists in 16 bit until
    its 4-bit copy is made.

    transformers 5.23 core_model_loading.py loads tensors that are quantized on the fly one after the other;
    peft 0.21 utils/other.py casts the rest to fp32 one after the other, each old copy freed as the new one
    takes its place.
    """
    resident = parameter_table.weight_rows()
    setup = parameter_table.setup
    load = [
        *resident,
        *parameter_table.reference_rows(),
        *(
            SymbolicRow(name, shape, "int64", 1, product((*shape, 8)), "activations", "the batch")
            for name, shape in batch_shapes(setup, tasks.rows(setup) * B)
        ),
    ]
    if OPTIMIZERS[setup.optimizer].at_once and METHODS[setup.method].trains != "nothing":
        load += parameter_table.state_rows()
    peaks = [load]
    if setup.load == "pretrained" and setup.device == "cuda":
        peaks.append([_warm_up(parameter_table)])
    quantized = [t for t in parameter_table.base if t.dtype in ("nf4", "fp4", "int8")]
    if quantized:
        largest = max(quantized, key=lambda t: t.elements.constant or 0)
        base = [row for row in resident if not row.why.startswith("adapter of")]
        peaks.append(
            [
                *base,
                _one(
                    largest.name,
                    largest.shape,
                    setup.weight_dtype,
                    "the largest weight before it is quantized",
                ),
            ]
        )
    cast = (setup.kbit_prepare and quantized) or setup.upcast_modules != "none"
    upcast = [
        t
        for t in parameter_table.base
        if cast and setup.weight_dtype != "float32" and t.dtype == "float32" and t.logical
    ]
    if upcast:
        largest = max(upcast, key=lambda t: t.elements.constant or 0)
        base = [row for row in resident if not row.why.startswith("adapter of")]
        peaks.append(
            [
                *base,
                _one(
                    largest.name,
                    largest.shape,
                    setup.weight_dtype,
                    "the largest tensor that is upcast, in its old dtype",
                ),
            ]
        )
    joined = [t for t in parameter_table.base if t.role == "expert" and t.name.endswith("gate_up_proj")]
    if (
        joined
        and setup.load == "pretrained"
        and parameter_table.spec.model_type in EXPERTS_APART
        and not upcast
    ):
        base = [row for row in resident if not row.why.startswith("adapter of")]
        halves = _one(
            joined[0].name,
            joined[0].shape,
            setup.weight_dtype,
            "gate and up of one layer's experts, before they are joined",
        )
        peaks.append([*base, halves])
    return {"load_peak": peaks, "load": [load]}


def _warm_up(parameter_table: ParameterTable) -> SymbolicRow:
    """One block as large as all that the checkpoint will fill, before any of it is there; freed at once
    (transformers 5.24 modeling_utils.py caching_allocator_warmup).
    """
    setup = parameter_table.setup
    size = total(
        packed_bytes(t.elements, t.dtype if t.dtype in ("nf4", "fp4", "int8") else setup.weight_dtype)
        * t.count
        for t in parameter_table.base
        if t.logical
    )
    why = "one block of the size of the checkpoint, which stays reserved"
    return SymbolicRow("warm-up of the allocator", (size,), "uint8", 1, size, "temporaries", why)


def _one(name: str, shape: tuple[Sized, ...], dtype: str, why: str) -> SymbolicRow:
    return SymbolicRow(
        f"{name} ({dtype})", shape, dtype, 1, product((*shape, itemsize(dtype))), "temporaries", why
    )


def batch_tensors(setup: Setup) -> list[str]:
    """The int64 (B, S) tensors of a batch: a plain loop has one for inputs and labels, the stacks' collators
    make labels and a mask.
    """
    if METHODS[setup.method].trains == "nothing":
        return ["input_ids"]
    if own := TASKS[setup.task].sequences:
        return list(own)
    collates = setup.loop.collates
    names = ["input_ids", "labels"] if collates else ["input_ids"]
    if setup.padded or (collates and setup.packed_documents == 1):
        names.append("attention_mask")
    if setup.packed_documents > 1:
        names.append("position_ids")
    return names


def batch_shapes(setup: Setup, rows: Sized) -> list[tuple[str, tuple[Sized, ...]]]:
    """(name, shape) of all that is held of batches of `rows` rows: the Trainer has every micro-batch of an
    optimizer step at once (transformers 5.23 trainer.py get_batch_samples).
    """
    names = batch_tensors(setup)
    found: list[tuple[str, tuple[Sized, ...]]] = [(name, (rows, S)) for name in names]
    labels = TASKS[setup.task].row_labels
    if labels:
        found.append(("labels", (rows,)))
    waits = (
        METHODS[setup.method].trains != "nothing"
        and setup.loop.prefetches
        and setup.gradient_accumulation > 1
    )
    if waits:
        further = setup.gradient_accumulation - 1
        found.append(("micro-batches that wait", (len(names) * further, rows, S)))
        if labels:
            found.append(("labels that wait", (further, rows)))
    return found
