"""What is there before the first step."""

from __future__ import annotations

from memplan.planner.formula.parameters import B, ParameterTable, S
from memplan.planner.formula.rows import SymbolicRow
from memplan.planner.formula.symbolic.expr import Sized, product
from memplan.planner.inputs import tasks
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.optimizers import OPTIMIZERS
from memplan.planner.tables.tasks import TASKS

# Model types whose checkpoints hold every expert apart: gate and up are stacked, then joined (transformers
# 5.23 conversion_mapping.py).
EXPERTS_APART = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3")


def load_rows(parameter_table: ParameterTable) -> list[SymbolicRow]:
    """Rows of `load`: all that is there before the first step, the batch included."""
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
    return load


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
