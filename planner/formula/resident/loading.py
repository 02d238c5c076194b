"""What is there before the first step."""

from __future__ import annotations

from memplan.planner.formula.parameters import B, ParameterTable, S
from memplan.planner.formula.rows import SymbolicRow
from memplan.planner.formula.symbolic.expr import Expr, Sized, as_expr, product
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
        *parameter_table.second_rows(),
        *(
            SymbolicRow(name, shape, "int64", 1, product((*shape, 8)), "activations", "the batch")
            for name, shape in batch_shapes(setup, tasks.read_at_once(setup) * B)
        ),
        *server_rows(setup),
    ]
    if OPTIMIZERS[setup.optimizer].at_once and METHODS[setup.method].trains != "nothing":
        load += parameter_table.state_rows()
    return load


def sampled_shapes(setup: Setup, rows: Sized) -> list[tuple[str, tuple[Sized, ...], str]]:
    """(name, shape, dtype) of all that is held of the rows that a model sampled, `rows` of them to each
    micro-batch, for as many micro-batches as are sampled at once (planner/run/rollout.py); none where the
    batch is read.
    """
    if not TASKS[setup.task].generates:
        return []
    sizes = tasks.generated(setup)
    whole, length = as_expr(rows) * sizes.steps, sizes.completion
    by_row = TASKS[setup.task].old_scores == "always"  # the reference's are in the rewards then
    compared = setup.reference != "none" and not by_row
    scores = (sizes.old_scores, "old_logps"), (compared, "ref_logps")
    return [
        *((f"prompt_{what}", (whole, S - length), "int64") for what in ("ids", "mask")),
        *((f"completion_{what}", (whole, length), "int64") for what in ("ids", "mask")),
        ("advantages", (whole,), "float32"),
        *((name, (whole,) if by_row else (whole, length), "float32") for there, name in scores if there),
    ]


def server_rows(setup: Setup) -> list[SymbolicRow]:
    """What a vLLM in the trainer's process takes all along, by configuration; none where it sleeps while the
    model is trained, or where there is none.
    """
    nbytes = 0 if setup.vllm_sleeps else tasks.server_bytes(setup)
    rows = [SymbolicRow(SERVER, (nbytes,), "uint8", 1, as_expr(nbytes), "activations", SHARE)]
    return rows if nbytes else []


SERVER, SHARE = "vLLM beside the trainer", "its configured share of the GPU"


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
    if TASKS[setup.task].generates:
        return []  # sampled in each step
    names = batch_tensors(setup)
    if setup.texts:
        names = [f"{number}:{name}" for number in range(setup.texts) for name in names]
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


def batch_sizes(setup: Setup) -> list[Expr]:
    """Bytes of each tensor of the batch, of what waits behind it, and of a server beside the trainer."""
    shapes = batch_shapes(setup, tasks.read_at_once(setup) * B)
    return [*(product(shape) * 8 for _, shape in shapes), *(row.size for row in server_rows(setup))]
