"""One rank's share under DDP, FSDP2 and ZeRO: what each strategy divides, what it adds, and what it cannot
do.

`PARALLEL` is the table. The schedules and rows are in `planner/formula/sharding/`: `plan.py` (one GPU),
`ddp.py`, `fsdp.py`, `zero.py`, and the `*_schedule.py` beside them; `wiring.py` chooses. A Setup says how
many ranks there are (`gpus`) and what they do (`parallel`); every number is of one rank, the one that holds
the most where they differ. Of two setups that follow from it, `stored` says in which dtypes tensors are kept,
`seen` in which forward and backward compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.optimizers import OPTIMIZERS

FOUR_BIT = ("nf4", "fp4")
UNRECORDED = "no multi-GPU run has been recorded, so the error of these numbers is unknown"


class Parallel(NamedTuple):
    """One strategy: what it divides by the number of ranks, what it adds on each, and where that was read."""

    name: str
    divides: tuple[str, ...]
    adds: tuple[str, ...]
    source: str
    offloads: tuple[str, ...] = ("none",)


PARALLEL: dict[str, Parallel] = {
    row.name: row
    for row in (
        Parallel("none", (), (), ""),
        Parallel(
            "ddp",
            (),
            (
                "gradient buckets: all gradients once more, however bucket_cap_mb cuts them; "
                "gradient_as_bucket_view: in their place",
                "nothing with one process, except in a plain loop (recipe raw): accelerate does not wrap it",
            ),
            "torch 2.13 csrc/distributed/c10d/reducer.cpp; accelerate 1.15 prepare_model",
        ),
        Parallel(
            "fsdp",
            ("parameters", "gradients", "optimizer states"),
            (
                "the unit that computes, gathered; the all-gather's output, of this unit in the forward and "
                "of the next in the backward",
                "a unit's whole gradients and the reduce-scatter's input",
                "float32 masters of what is trained where mixed precision is on (accelerate, without 4-bit "
                "weights)",
                "in the load peak, a quantized model whole beside its parts: it is loaded onto every GPU, "
                "and accelerate holds what it cuts; with a loader that keeps it on the host "
                "(`load_on_host`, axolotl's cpu_ram_efficient_loading), one whole unit",
            ),
            "torch 2.13 distributed/fsdp/_fully_shard; accelerate 1.15 utils/fsdp_utils.py "
            "fsdp2_prepare_model",
            ("none", "all"),
        ),
        Parallel(
            "zero1",
            ("optimizer states",),
            (
                "float32 masters, divided too",
                "the reduce bucket, from the first gradient to the end of the backward",
            ),
            "deepspeed 0.19.8 runtime/zero/stage_1_and_2.py",
            ("none", "optimizer"),
        ),
        Parallel(
            "zero2",
            ("gradients", "optimizer states"),
            ("float32 masters, divided too", "the reduce bucket, twice with overlap_comm"),
            "deepspeed 0.19.8 runtime/zero/stage_1_and_2.py",
            ("none", "optimizer"),
        ),
        Parallel(
            "zero3",
            ("parameters", "gradients", "optimizer states"),
            (
                "float32 masters, divided too",
                "the reduce bucket, all through",
                "small parameters, whole on every rank",
                "gathered parameters: what computes, what is prefetched, and what is used again soon",
            ),
            "deepspeed 0.19.8 runtime/zero/{stage3,partition_parameters,partitioned_param_coordinator}.py",
            ("none", "optimizer", "all"),
        ),
    )
}
SHARDED = tuple(row.name for row in PARALLEL.values() if row.divides)


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
                else f", and the formula has no rule for {family}: run the program itself ({dry}), or use {alone}"
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
        "adamw_torch_fused, --parallel zero2 or zero3, or --set fsdp_version=1",
    )
    yield (
        s.parallel == "fsdp" and s.quant_type in FOUR_BIT and s.quant_storage not in ("uint8", wide),
        f"quant_storage {s.quant_storage} would be cast to {wide} by mixed precision, which breaks packed "
        "weights: set "
        f"quant_storage={wide}",
    )
    yield (
        s.parallel == "zero3" and s.quant_type != "none" and storage != wide,
        f"zero3 cannot divide weights stored as {storage}: set quant_storage={wide} (nf4 or fp4), or use "
        "zero2, which keeps them whole",
    )


def _without_a_rule(s: Setup) -> Iterator[tuple[bool, str]]:
    sharded = s.parallel in SHARDED
    yield (
        s.vocabulary is not None and s.parallel in ("fsdp", "zero3"),
        f"vocabulary {s.vocabulary}: growing a model that is cut across GPUs has no rule under {s.parallel}; set "
        "vocab_size in its config.json instead",
    )
    yield (
        sharded and s.method == "inference",
        f"inference under {s.parallel} has no rule: predict one GPU with --set parallel=none",
    )
    yield (
        s.parallel == "fsdp" and any(rule == "factored" for _, rule in OPTIMIZERS[s.optimizer].states),
        f"{s.optimizer}'s row and column means over a part of a tensor have no rule: choose an adamw optimizer, "
        "or zero2",
    )
    yield (
        sharded and OPTIMIZERS[s.optimizer].others is not None,
        f"{s.optimizer} works on whole matrices, of which a rank under {s.parallel} has parts: use ddp, or "
        "an adamw optimizer",
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


def compute_dtype(setup: Setup) -> str:
    """The dtype that parameters compute in: mixed precision's where it is on, else their own."""
    return setup.autocast if setup.autocast != "none" else setup.weight_dtype


def seen(setup: Setup) -> Setup:
    """What forward and backward compute with.

    Under FSDP2 accelerate does not wrap the forward in autocast: a MixedPrecisionPolicy casts parameters as
    they are gathered, and inputs (accelerate 1.15 accelerator.py `_prepare_fsdp2`; torch 2.13 _fsdp_api.py).
    DeepSpeed converts the whole module (runtime/engine.py `_configure_distributed_model`); neither converts
    outputs to float32.
    """
    if setup.parallel not in SHARDED:
        return setup
    if setup.parallel == "fsdp" and setup.autocast == "none":
        return setup.with_(outputs_fp32=False)
    dtype = compute_dtype(setup)
    return setup.with_(
        autocast="none",
        outputs_fp32=False,
        weight_dtype=dtype,
        adapter_dtype=dtype,
        trainable_dtype="weight",
        upcast_modules="none",
        kbit_prepare=False,
    )


def stored(setup: Setup) -> Setup:
    """How parameters are kept: float32 for what is trained under accelerate's FSDP2 with mixed precision,
    unless weights are 4-bit (accelerate 1.15 utils/fsdp_utils.py); DeepSpeed keeps what it computes with, and
    float32 masters beside it.
    """
    if setup.parallel.startswith("zero"):
        return seen(setup)
    upcast = (
        setup.parallel == "fsdp"
        and setup.autocast != "none"
        and setup.loop.prepares
        and setup.quant_type not in FOUR_BIT
    )
    return setup.with_(trainable_dtype="float32") if upcast else setup


def wraps(setup: Setup) -> bool:
    """Whether the stack wraps the model for the strategy named: accelerate, which all but a plain loop use,
    makes no DDP of one process (accelerate 1.15 accelerator.py `prepare_model` asks `multi_device`: more than
    one process); a loop that calls DDP itself does.
    """
    return setup.parallel != "none" and (setup.parallel != "ddp" or setup.gpus > 1 or not setup.loop.prepares)


def evaluates(setup: Setup) -> bool:
    """Whether an evaluation step is counted: where a rank holds the whole model, and gathers no logits of
    others (transformers 5.24 trainer.py evaluation_loop gathers those that compute_metrics keeps).
    """
    return not wraps(setup) or (setup.parallel == "ddp" and setup.eval_kept is None)


def gathers(setup: Setup) -> bool:
    """Whether saving gathers what ranks share: FSDP's full state dict."""
    return setup.parallel == "fsdp" and setup.gpus > 1


def warnings(engine: str, setup: Setup) -> tuple[str, ...]:
    """What a user should know of a prediction for several ranks."""
    if setup.parallel == "none":
        return ()
    if not wraps(setup):
        return (
            f"{setup.parallel} with one process: accelerate, which recipe {setup.recipe} prepares "
            "its model with, does not wrap it, so this is one GPU without buckets: set the number "
            "of processes with --gpus N",
        )
    found = [f"{setup.parallel}: NCCL's buffers are not in the total; {UNRECORDED}"]
    if engine != "formula" and setup.gradient_as_bucket_view:
        found.append(
            "gradients that are views of their buckets are counted twice by the trace, which is too high: the "
            "formula counts them once"
        )
    if setup.gpus == 1:
        found.append(f"{setup.parallel} with one rank shards nothing: set the number of GPUs with --gpus N")
    if setup.parallel == "fsdp" and setup.fsdp_version == 1:
        found.append(
            "FSDP1 is predicted as FSDP2: it flattens the parameters of a unit and pads them together, a "
            "few elements a unit"
        )
    if setup.parallel == "fsdp" and setup.quant_type in FOUR_BIT and setup.quant_storage == "uint8":
        found.append(
            "4-bit weights stored as uint8 are not sharded: every rank keeps all of them (--set "
            f"quant_storage={compute_dtype(setup)} shards them)"
        )
    if setup.parallel == "fsdp" and setup.gradient_accumulation > 1 and setup.loop.prepares:
        found.append(
            "gradient accumulation under fsdp keeps full gradients on every rank: accelerate's "
            "no_sync reduces them only in the last micro-batch"
        )
    return tuple(found)


def assumptions(setup: Setup) -> Iterator[str]:
    """What is taken for granted of the strategy."""
    row = PARALLEL[setup.parallel]
    if wraps(setup):
        divided = f"divides {', '.join(row.divides)}" if row.divides else "every rank holds everything"
        yield f"one rank of {setup.gpus}: {row.name} {divided}, and adds what docs/parallel.md lists"


INTRODUCTION = """\
# Several GPUs: one rank's share

Generated from `PARALLEL` in planner/formula/sharding/strategies.py: `python -m memplan.planner.formula.sharding.strategies > docs/parallel.md`.

`memplan MODEL --gpus N --parallel NAME` predicts one of N processes, the one that needs the most memory. The micro-batch is per rank;
activations are not divided. Shards are exact, padding included. The FSDP2 schedule matches torch's to the byte. ZeRO's partitions match
DeepSpeed's; its peaks were compared with two CPU processes of deepspeed 0.19.8 and a tiny model: stages 1 and 2 are within 0.4 %, and stage 3
is up to 3.5 % too high, because the most that a pass gathers is counted throughout the pass. No multi-GPU run has been recorded.
"""


def page() -> str:
    """docs/parallel.md: what each strategy divides and adds."""
    lines = [INTRODUCTION]
    for row in PARALLEL.values():
        if row.name == "none":
            continue
        lines += [
            f"## {row.name}",
            "",
            f"Divides: {', '.join(row.divides) or 'nothing'}. Offloading (`--set offload=...`): "
            f"{', '.join(row.offloads)}. Read in {row.source}.",
            "",
            "Adds on each rank:",
            "",
        ]
        lines += [f"* {what}" for what in row.adds] + [""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
