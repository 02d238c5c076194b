"""What a strategy cannot do, what has no rule of ours, and what the trace, one process, cannot show."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.planner.formula.sharding.strategies import FOUR_BIT, PARALLEL, SHARDED, compute_dtype
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.optimizers import OPTIMIZERS
from memplan.planner.tables.tasks import TASKS


def refuse_sharding(setup: Setup, bounded: bool = False) -> None:
    """Raise UsageError for what a strategy cannot do, or what we have no rule for, unless a lower bound is
    what is asked for. Each names the next move.
    """
    for broken, text in (*_impossible(setup), *(() if bounded else _without_a_rule(setup))):
        if broken:
            raise UsageError(text)


def lacks_a_rule(setup: Setup) -> bool:
    """Whether a strategy runs the setup, but no rule of ours says what it needs."""
    return any(broken for broken, _ in _without_a_rule(setup))


def refuse_tracing(setup: Setup, family: str | None = None) -> None:
    """Raise UsageError where the trace, which runs one process, would answer for one rank of several that
    share, or the installed transformers for another release. `family`: a model_type that the formula lacks.
    """
    if setup.transformers != "5":
        raise UsageError(
            f"the trace runs the installed transformers and cannot run {setup.transformers}: use --engine "
            "formula, or leave transformers out"
        )
    if setup.parallel in SHARDED:
        alone = "--gpus 1 --set parallel=none for one GPU that holds everything"
        dry = f"memplan dry-run --gpus {setup.gpus} -- torchrun --nproc_per_node {setup.gpus} train.py"
        raise UsageError(
            f"the trace runs one process and cannot show a rank's share under {setup.parallel}"
            + (
                f": use --engine formula, or {alone}"
                if family is None
                else f", and the formula has no rule for {family}: run the program itself ({dry}), or use "
                f"{alone}"
            )
        )


def _impossible(s: Setup) -> Iterator[tuple[bool, str]]:
    """What the libraries refuse, or would break."""
    sharded, row, wide = s.parallel in SHARDED, PARALLEL[s.parallel], compute_dtype(s)
    storage = s.quant_storage if s.quant_type in FOUR_BIT else s.quant_type
    yield (
        s.offload not in row.offloads,
        f"offload '{s.offload}' is not one of {s.parallel}'s: expected {' or '.join(row.offloads)}",
    )
    yield (
        sharded and s.method == "adalora",
        f"adalora reads its adapters outside the modules' forward, where {s.parallel} has only parts of "
        "them: use ddp",
    )
    yield (
        s.parallel == "fsdp" and s.fsdp_version == 2 and OPTIMIZERS[s.optimizer].library == "bitsandbytes",
        f"{s.optimizer} cannot step under FSDP2: bitsandbytes 0.50 has no rule for its sharded "
        "tensors (DTensor), and torch stops the run; choose --optimizer "
        "adamw_torch_fused, or --parallel fsdp1, zero2 or zero3",
    )
    yield (
        s.parallel == "fsdp" and s.quant_type in FOUR_BIT and s.quant_storage not in ("uint8", wide),
        f"quant_storage {s.quant_storage} would be cast to {wide} by mixed precision, which breaks packed "
        "weights: set "
        f"quant_storage={wide}",
    )
    yield (
        s.parallel == "fsdp"
        and s.fsdp_version == 1
        and s.quant_type in FOUR_BIT
        and (s.quant_storage == "uint8" or s.kbit_prepare),
        "FSDP1 flattens a layer's parameters into one floating-point tensor, so PyTorch raises an error for "
        f"4-bit weights stored as {s.quant_storage}: use --set quant_storage={wide} and --set "
        "kbit_prepare=false, or --parallel fsdp2",
    )
    yield (
        s.parallel == "zero3" and s.quant_type != "none" and storage != wide,
        f"zero3 cannot divide weights stored as {storage}: set quant_storage={wide} (nf4 or fp4), or use "
        "zero2, which keeps them whole",
    )


def _without_a_rule(s: Setup) -> Iterator[tuple[bool, str]]:
    """What runs, but is not counted."""
    sharded, task = s.parallel in SHARDED, TASKS[s.task]
    yield (
        s.vocabulary is not None and s.parallel in ("fsdp", "zero3"),
        f"vocabulary {s.vocabulary}: growing a model that is cut across GPUs has no rule under {s.parallel}; "
        "set vocab_size in its config.json instead",
    )
    yield (
        sharded and s.method == "inference",
        f"inference under {s.parallel} has no rule: predict one GPU with --set parallel=none",
    )
    yield (
        s.parallel == "fsdp" and any(rule == "factored" for _, rule in OPTIMIZERS[s.optimizer].states),
        f"{s.optimizer}'s row and column means over a part of a tensor have no rule: choose an adamw "
        "optimizer, or zero2",
    )
    yield (
        sharded and OPTIMIZERS[s.optimizer].others is not None,
        f"{s.optimizer} works on whole matrices, of which a rank under {s.parallel} has parts: use ddp, or "
        "an adamw optimizer",
    )
    yield (
        sharded and (task.head != "vocabulary" or task.reference or task.joined),
        f"task '{s.task}' has no rule for parallel '{s.parallel}': use --parallel ddp, or leave --task out "
        "for the supervised step, which is less",
    )
    yield (
        s.parallel == "fsdp" and s.quant_type == "int8",
        "int8 weights under fsdp have no rule: use ddp, or nf4 with quant_storage bfloat16",
    )
    yield (
        s.parallel == "fsdp" and OPTIMIZERS[s.optimizer].library == "optimi",
        f"{s.optimizer} takes no Triton step on fsdp's sharded tensors (torch-optimi 0.3.3 utils.py "
        "_default_to_triton), and its loop over them has no rule: use zero2 or zero3, or "
        "--optimizer adamw_torch_fused",
    )
    yield (
        sharded and OPTIMIZERS[s.optimizer].on_host,
        f"{s.optimizer}'s copies of states between host and GPU have no rule under {s.parallel}: use ddp, or "
        "an adamw optimizer",
    )
