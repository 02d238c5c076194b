"""One rank's share under DDP, FSDP2 and ZeRO: what each strategy divides and what it adds.

`PARALLEL` is the table. The schedules and rows are in `planner/formula/sharding/`: `plan.py` (one GPU),
`ddp.py`, `fsdp.py`, `zero.py`, and the `*_schedule.py` beside them; `wiring.py` chooses, `refusals.py` says
what a strategy cannot do. A Setup says how
many ranks there are (`gpus`) and what they do (`parallel`); every number is of one rank, the one that holds
the most where they differ. Of two setups that follow from it, `stored` says in which dtypes tensors are kept,
`seen` in which forward and backward compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.parallel import named

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
                "between replicas (`--set replicas=N`, HSDP; the GPUs are those of one), where mixed "
                "precision is on, this rank's parts of all gradients in the dtype in which they are reduced, "
                "until the backward ends",
                "in the load peak, a quantized model whole beside its parts: it is loaded onto every GPU, "
                "and accelerate holds what it cuts; with a loader that keeps it on the host "
                "(`load_on_host`, axolotl's cpu_ram_efficient_loading), one whole unit",
            ),
            "torch 2.13 distributed/fsdp/_fully_shard; accelerate 1.15 utils/fsdp_utils.py "
            "fsdp2_prepare_model",
            ("none", "all"),
        ),
        Parallel(
            "fsdp1",
            ("parameters", "gradients", "optimizer states"),
            (
                "one flat tensor of each layer and of what is outside of them, gathered while it computes: "
                "in the backward of two layers with backward_prefetch pre; the root's all the time",
                "a unit's whole gradients, and once more joined in a flat one",
                "float32 masters of what is trained where mixed precision is on (accelerate); until the "
                "first forward the parts in 16 bit beside them with use_orig_params",
                "with use_orig_params a float32 copy of every adapter's input: between forwards a module "
                "has its part, in the dtype that is kept (peft 0.21 tuners/tuners_utils.py _cast_input_dtype)",
                "in the load peak a unit's tensors, their flat copy and the part; a quantized model is whole "
                "on every GPU before",
                "what is reserved for units that the GPU has not come to the end of: the host is ahead by two "
                "(limit_all_gathers)",
            ),
            "torch 2.14 distributed/fsdp/{_flat_param,_runtime_utils}.py; accelerate 1.15 accelerator.py "
            "prepare_model; `--parallel fsdp1` is fsdp with fsdp_version 1",
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
FLATTENED = ("full", "freeze", "lora", "qlora")
"""Methods that FSDP1 has a rule for: each unit is trained or frozen as a whole."""
SHARDED = tuple(row.name for row in PARALLEL.values() if row.divides)


def flattens(setup: Setup) -> bool:
    """Whether a setup is one of FSDP1 that has a rule of its own: parameters in flat tensors, of one kind in
    each unit. Adapters are units of their own (peft 0.21 utils/other.py fsdp_auto_wrap_policy); other trained
    tensors inside of a frozen unit would make whole gradients of all of it.
    """
    if setup.parallel != "fsdp" or setup.fsdp_version != 1 or setup.gpus == 1:
        return False  # one rank alone: torch turns to NO_SHARD (fsdp/_init_utils.py _init_core_state)
    without = (
        setup.optimizer_in_backward,
        bool(setup.target_parameters or setup.modules_to_save or setup.trained_parameters),
        bool(setup.fused_kernels and setup.method != "full"),
        setup.checkpoint_quant != "none",
        setup.quant_type not in ("none", *FOUR_BIT),
        setup.reference == "model" or setup.teacher is not None,
        setup.adapter is not None,
    )
    return setup.method in FLATTENED and not any(without)


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
    # FSDP1's forward stays in autocast, and its outputs become float32 (accelerator.py `prepare_model`)
    cast = (
        (setup.autocast, setup.outputs_fp32) if flattens(setup) and setup.loop.prepares else ("none", False)
    )
    return setup.with_(
        autocast=cast[0],
        outputs_fp32=cast[1],
        weight_dtype=dtype,
        adapter_dtype=dtype,
        trainable_dtype="weight",
        upcast_modules="none",
        kbit_prepare=False,
    )


def stored(setup: Setup) -> Setup:
    """How parameters are kept: float32 for what is trained under accelerate's FSDP with mixed precision,
    under FSDP2 unless weights are 4-bit (accelerate 1.15 utils/fsdp_utils.py, accelerator.py); DeepSpeed keeps what it computes with, and
    float32 masters beside it.
    """
    if setup.parallel.startswith("zero"):
        return seen(setup)
    upcast = (
        setup.parallel == "fsdp"
        and setup.autocast != "none"
        and setup.loop.prepares
        and (setup.quant_type not in FOUR_BIT or flattens(setup))
    )
    return setup.with_(trainable_dtype="float32") if upcast else setup


def wraps(setup: Setup) -> bool:
    """Whether the stack wraps the model for the strategy named: accelerate, which all but a plain loop use,
    makes no DDP of one process (accelerate 1.15 accelerator.py `prepare_model` asks `multi_device`: more than
    one process); a loop that calls DDP itself does.
    """
    return setup.parallel != "none" and (setup.parallel != "ddp" or setup.gpus > 1 or not setup.loop.prepares)


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
    if setup.parallel == "fsdp" and setup.fsdp_version == 1 and not flattens(setup):
        found.append(
            f"FSDP1 of {setup.method} with these settings is predicted as FSDP2: its own rule is for "
            f"{', '.join(FLATTENED)} on linear layers"
        )
    if flattens(setup) and METHODS[setup.method].trains == "adapter" and not setup.loop.prepares:
        found.append(
            "FSDP1 with adapters: each is assumed to be wrapped by itself, as PEFT's fsdp_auto_wrap_policy does; "
            "inside a layer's unit they make whole gradients of its frozen weights"
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
    row = PARALLEL[named(setup.parallel, setup.fsdp_version)]
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

With one rank, what has no rule here (a family that the formula lacks, muon, a task with a head of its own) is a lower bound: the run without
the strategy, in the dtypes that the strategy computes in, less what it offloads. With several ranks it is refused.
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
