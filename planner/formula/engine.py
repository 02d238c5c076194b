"""The formula engine: plan(spec, setup) -> Prediction in closed form, without torch.

`symbolic` builds one structure once, and `plan` evaluates its rows for one setup.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from memplan.planner.formula.assumptions import assumptions, of_formula, warnings
from memplan.planner.formula.program import SYMBOLS, Symbolic
from memplan.planner.formula.replay.load import MOST_LAYERS
from memplan.planner.formula.sharding.strategies import assumptions as sharing
from memplan.planner.formula.sharding.strategies import flattens, wraps
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.inputs.tasks import headed
from memplan.planner.prediction import Breakdown, ModelSummary, Peak, Prediction
from memplan.planner.tables.components import GENERATION, STEP_MOMENTS
from memplan.planner.tables.gpus import context_bytes, find_gpu, first_alike
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.optimizers import OPTIMIZERS
from memplan.planner.tables.torch_versions import TORCH_VERSIONS

if TYPE_CHECKING:
    from memplan.planner.allocator.replay import Mode
    from memplan.planner.formula.forward.decoder import Guard
    from memplan.planner.formula.replay.course import Run
    from memplan.planner.formula.replay.engine import Replayed
    from memplan.planner.formula.replay.varied import Step, VariedRun

SEGMENT = 2**21  # bytes: the allocator asks the driver for multiples of 2 MiB
FREE = ("micro_batch", "sequence_length", "rank")  # fields that are symbols


def has_free_rank(setup: Setup) -> bool:
    """Whether the rank is a symbol of the setup's structure: floors (8-bit states, ZeRO's buckets) make it
    part of the structure, whose sizes then hold at this rank alone.
    """
    return not (OPTIMIZERS[setup.optimizer].floors or setup.parallel.startswith("zero"))


def _structure(setup: Setup) -> Setup:
    """The setup with the symbolic fields set to 1, on the first GPU of its compute capability, which decides
    kernels (its own where the load reduces): equal for setups of one structure.
    """
    free_rank = has_free_rank(setup)
    free = {name: 1 for name in FREE if name != "rank" or free_rank}
    if setup.init_rank is not None and free_rank:
        free["init_rank"] = 1
    if setup.target_rank is not None:
        free["target_rank"] = 1
    # a server's share is of one GPU's memory
    one = setup.gpu is None or setup.vllm_share is not None or setup.vocabulary is not None
    one = one or "rms_norm" in setup.fused_kernels  # a row for each multiprocessor
    gpu = {} if one else {"gpu": first_alike(find_gpu(str(setup.gpu)))}
    return setup.with_(**free, **gpu)


class _Key:
    """A spec by identity and a setup by its fields: hashing a whole config would cost more than the
    formula.
    """

    __slots__ = ("_hash", "setup", "spec", "text")

    def __init__(self, spec: ModelSpec, setup: Setup) -> None:
        self.spec, self.setup = spec, setup
        self.text = repr(setup)
        self._hash = hash((id(spec), self.text))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.spec is other.spec and self.text == other.text


@lru_cache(maxsize=256)
def _cached(key: _Key) -> Symbolic:
    return Symbolic(key.spec, key.setup)


def symbolic(spec: ModelSpec, setup: Setup) -> Symbolic:
    """The structure of a setup as functions of B, S and R; built once. UsageError where the formula has no
    rule.
    """
    return _cached(_Key(headed(spec, setup), _structure(setup)))


def rank_of(setup: Setup) -> int:
    """The rank that adapters have: AdaLoRA's initial one, which pruning only masks (peft 0.21
    tuners/adalora/model.py).
    """
    return setup.init_rank if setup.method == "adalora" and setup.init_rank is not None else setup.rank


def is_replayed(setup: Setup) -> bool:
    """Whether a run is written out as events. Not under ZeRO, nor with parts in host memory. Under FSDP not
    where whole gradients stay from one micro-batch to the next (accelerate's no_sync), nor with states that
    are there at once, an optimizer in the backward, a second model, or a base that is stored quantized.
    """
    if not wraps(setup):
        return True
    if setup.parallel == "ddp":
        return setup.offload == "none"
    left_out = (
        setup.offload != "none",
        setup.fsdp_version == 1 and not flattens(setup),
        setup.gradient_accumulation > 1 and setup.loop.prepares,
        OPTIMIZERS[setup.optimizer].at_once,
        setup.optimizer_in_backward,
        setup.reference == "model",
        setup.checkpoint_quant != "none",
    )
    return setup.parallel == "fsdp" and not any(left_out)


def replays(spec: ModelSpec, setup: Setup) -> bool:
    """Whether a setup's run is replayed: where it is written out (`is_replayed`), but not on a CPU, which has
    no such allocator, nor beyond MOST_LAYERS.
    """
    return is_replayed(setup) and setup.device == "cuda" and spec.depth <= MOST_LAYERS


def replays_alone(spec: ModelSpec, setup: Setup) -> bool:
    """Whether it is replayed and one GPU's, whose blocks are of one stream."""
    return replays(spec, setup) and not wraps(setup)


def replay_of(spec: ModelSpec, setup: Setup) -> Replayed | None:
    """The setup's run through the caching allocator; None where it is not replayed. UsageError where the
    formula has no rule.
    """
    if not replays(spec, setup):
        return None
    values = (setup.micro_batch, setup.sequence_length, rank_of(setup))
    return _replayed(_Key(headed(spec, setup), _structure(setup)), values, setup.allocator, setup.torch)


@lru_cache(maxsize=32)
def _replayed(key: _Key, sizes: tuple[int, int, int], allocator: Mode, torch: str) -> Replayed:
    """The same by what decides it, kept for a while: methods, GPUs, limits and changes ask for one run."""
    from memplan.planner.formula.replay.engine import replayed

    run = _run(key, sizes[0], sizes[1])
    values = dict(zip(SYMBOLS, sizes, strict=True))
    return replayed(run, values, allocator, TORCH_VERSIONS[torch].equal_blocks)


def varied_run(
    spec: ModelSpec, setup: Setup, allocator: Mode | None = None, capacity: int | None = None
) -> VariedRun | None:
    """A run whose steps have lengths of their own, in an allocator mode (the setup's own), under a capacity
    in bytes; None where runs are not replayed. UsageError where the formula has no rule.
    """
    if not replays_alone(spec, setup):
        return None
    from memplan.planner.formula.replay.varied import VariedRun

    model, rank = headed(spec, setup), rank_of(setup)
    keys = {padded: _Key(model, _structure(setup.with_(padded=padded))) for padded in (False, True)}

    def at(step: Step) -> tuple[Run, dict[str, int]]:
        length, padded = step
        values = dict(zip(SYMBOLS, (setup.micro_batch, length, rank), strict=True))
        return _run(keys[padded], setup.micro_batch, length), values

    return VariedRun(at, allocator or setup.allocator, TORCH_VERSIONS[setup.torch].equal_blocks, capacity)


def steady_bytes(spec: ModelSpec, setup: Setup) -> int:
    """Bytes of all tensors that one steady step makes, each counted once: what its kernels write."""
    values = (setup.micro_batch, setup.sequence_length, rank_of(setup))
    run = _run(_Key(headed(spec, setup), _structure(setup)), values[0], values[1])
    events = run.events(dict(zip(SYMBOLS, values, strict=True)))
    return sum(events.sizes[each] for each in events.events[events.steady :] if 0 <= each < len(events.sizes))


def _run(key: _Key, batch: int, sequence: int) -> Run:
    """The events of a structure's run, in the guard of these sizes; a step of several micro-batches has two
    kinds of them.
    """
    structure = _cached(key)
    guard = structure.guard(batch, sequence)
    return _cached_run(key, guard)


def run_of(spec: ModelSpec, setup: Setup, guard: Guard) -> Run | None:
    """The events of one GPU's run under a guard; None where ranks share it, which takes streams, and where
    `replay_of` has none. UsageError where the formula has no rule.
    """
    if not replays_alone(spec, setup):
        return None
    return _cached_run(_Key(headed(spec, setup), _structure(setup)), guard)


@lru_cache(maxsize=64)
def _cached_run(key: _Key, guard: Guard) -> Run:
    from memplan.planner.formula.replay.course import Run

    structure = _cached(key)
    program = structure.program(guard)
    if key.setup.gradient_accumulation == 1 or METHODS[key.setup.method].trains == "nothing":
        return Run(structure.rank, program.tape, None, program.after, program.generation)
    alone = symbolic(key.spec, key.setup.with_(gradient_accumulation=1))
    single = alone.program(guard).tape
    return Run(structure.rank, single, program.tape, program.after, program.generation)


def plan(spec: ModelSpec, setup: Setup, *, replayed: bool = True) -> Prediction:
    """The formula's prediction for one model and setup. Raises UsageError where it has no rule, naming the
    trace engine. Not `replayed` through the allocator, which takes nearly all of the time: tensors are the
    same, reserved bytes only whole segments.
    """
    spec = headed(spec, setup)
    structure = symbolic(spec, setup)
    values = (setup.micro_batch, setup.sequence_length, rank_of(setup))
    named = dict(zip(SYMBOLS, values, strict=True))
    moments = structure.breakdowns(*values)
    context = context_bytes(setup.gpu) if setup.device == "cuda" else 0
    parameter_table = structure.parameter_table
    host = structure.program(structure.guard(values[0], values[1])).host.evaluate(named)
    run = replay_of(spec, setup) if replayed else None
    steps = [m for m in moments if m.moment in (GENERATION, *STEP_MOMENTS)]
    return Prediction(
        engine="formula",
        model=ModelSummary(spec.name, spec.architecture, spec.parameters),
        setup=setup,
        trainable_parameters=parameter_table.trainable_parameters().evaluate(named),
        total_parameters=parameter_table.total_parameters().evaluate(named),
        checkpoint_bytes=parameter_table.checkpoint_bytes().evaluate(named),
        peak=_peak(moments, context, run.reserved_bytes if run else None),
        step_peak=_peak(steps, context, run.step_reserved_bytes if run else None),
        moments=moments,
        host_bytes=host,
        assumptions=(*sharing(setup), *assumptions(spec, setup), *of_formula(setup, run is not None)),
        warnings=tuple(warnings(spec, setup)),
        extra=_of_saving(structure, named),
        survival=run,
        not_modelled=(
            *((spec.uncounted,) if spec.uncounted else ()),
            *_of_kernels(spec, setup),
        ),
    )


def _of_kernels(spec: ModelSpec, setup: Setup) -> tuple[str, ...]:
    """Kernels that a setup asks for whose memory is not known."""
    if not setup.fused_kernels:
        return ()
    from memplan.planner.inputs.fused_kernels import uncounted

    return uncounted(spec.whole_type or spec.model_type, setup)


def _of_saving(structure: Symbolic, named: dict[str, int]) -> dict[str, int]:
    if not structure.setup.save or structure.setup.save_sharded:  # what a part is written from was not read
        return {}
    from memplan.planner.formula.saving import saved_on_host

    return {"save_host_bytes": saved_on_host(structure.rank).evaluate(named)}


def _peak(moments: Sequence[Breakdown], context: int, reserved: int | None) -> Peak:
    """The largest moment; `reserved` None: nothing was replayed, and segments are taken to be full."""
    largest = max(moments, key=lambda m: m.allocated_bytes)
    allocated = largest.allocated_bytes
    return Peak(
        largest.moment, allocated, whole_segments(allocated) if reserved is None else reserved, context
    )


def whole_segments(allocated: int) -> int:
    """What is reserved at least, bytes: `allocated` in whole segments, without fragmentation."""
    return -(-allocated // SEGMENT) * SEGMENT
