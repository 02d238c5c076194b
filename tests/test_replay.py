"""The formula's own run through the caching allocator: what it is made of, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.planner.allocator.quick import EMPTY_CACHE, Quick, smallest_capacity, survives
from memplan.planner.allocator.replay import replay
from memplan.planner.allocator.replay import smallest_capacity as other_capacity
from memplan.planner.formula.engine import plan, rank_of, replay_of, symbolic
from memplan.planner.formula.program import device_of
from memplan.planner.formula.replay.course import Run
from memplan.planner.formula.replay.engine import replayed
from memplan.planner.formula.replay.unroll import unroll
from memplan.planner.formula.tape.tape import Tape
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.gpus import find_gpu, gpus
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.torch_versions import TORCH_VERSIONS
from memplan.planner.tables.units import GIB

SEGMENT = 2 * 2**20
SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 9,
    "vocab_size": 8192,
    "head_dim": 64,
}
SETUPS: list[dict[str, Any]] = [
    {"method": "qlora"},
    {"method": "lora"},
    {"method": "lora", "checkpointing": "non_reentrant", "checkpoint_every": 2},
    {"method": "full", "checkpointing": "reentrant", "optimizer": "adafactor"},
    {"method": "full", "autocast": "none", "recipe": "raw", "optimizer": "adamw_torch"},
    {"method": "freeze", "trainable_layers": 6},
    {"method": "adalora", "gradient_accumulation": 2},
    {"method": "prefix-tuning"},
    {"method": "dora", "attention": "eager", "padded": True},
    {"method": "adapter", "loss": "chunked"},
    {"method": "inference"},
]
MODELS = ("llama-7b", "gpt2", "gemma-2-2b", "qwen3-30b-a3b", "bloom-560m")


def small_gpt(name: str) -> dict[str, Any]:
    """GPT-J's config has names of its own."""
    return {
        **find(name).config,
        "n_embd": 256,
        "n_head": 4,
        "n_layer": 5,
        "n_inner": 1024,
        "vocab_size": 8192,
        "rotary_dim": 16,
        "_name_or_path": f"small {name}",
    }


def small(name: str) -> dict[str, Any]:
    return {**find(name).config, **SMALL, "_name_or_path": f"small {name}"}


def peaks(tape: Tape, values: Mapping[str, int]) -> dict[str, int]:
    """The largest sum of each moment, as the tape has it: repeated layers as one event."""
    sizes = [info.size.evaluate(values) for info in tape.infos]
    marks, moment, now = list(tape.marks), "", 0
    found: dict[str, int] = {}
    for position, (index, change) in enumerate(tape.log):
        while marks and marks[0][0] <= position:
            moment = marks.pop(0)[1]
        now += sizes[index] * change if index >= 0 else sum(sizes[i] * n for i, n in change.items())
        found[moment] = max(found.get(moment, 0), now)
    return found


@pytest.mark.parametrize("fields", SETUPS, ids=lambda fields: " ".join(map(str, fields.values())))
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_written_out_adds_up_to_the_tape(name: str, fields: dict[str, Any]):
    if fields["method"] == "dora" and "a3b" in name:
        fields = {**fields, "targets": "attention"}  # peft has no DoRA for the parameters of experts
    spec = find(name).spec()
    setup = resolve({"sequence_length": 128, **fields}, max_positions=spec.max_positions)
    structure = symbolic(spec, setup)
    tape = structure.program(structure.guard(1, 128)).tape
    values = {"B": 1, "S": 128, "R": rank_of(setup)}
    made = unroll(tape)
    marks, moment, now, alive = list(made.marks), "", 0, set()
    found: dict[str, int] = {}
    for position, event in enumerate(made.events):
        while marks and marks[0][0] <= position:
            moment = marks.pop(0)[1]
        size = tape.infos[made.infos[event if event >= 0 else ~event]].size.evaluate(values)
        if event >= 0:
            assert event not in alive
            alive.add(event)
            now += size
        else:
            alive.remove(~event)
            now -= size
        found[moment] = max(found.get(moment, 0), now)
    wanted = peaks(tape, values)
    for moment in ("forward", "backward"):
        if moment in wanted:
            assert found[moment] == wanted[moment], moment


@pytest.mark.parametrize("recipe", ["raw", "hf"])
@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if not row.traced])
def test_a_run_holds_no_less_than_its_tensors(method: str, recipe: str):
    """The allocator rounds up: a replay below the formula's own tensors leaves some of them out."""
    model = small("llama-7b") | {"num_key_value_heads": 4}
    setup = resolve({"method": method, "recipe": recipe, "sequence_length": 256})
    spec = find(model).spec()
    run, found = replay_of(spec, setup), plan(spec, setup)
    assert run is not None
    assert run.step_allocated_bytes >= found.step_peak.allocated_bytes


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30 * 2**20), st.integers(0, 10**6)), max_size=120)
)
def test_the_quick_allocator_is_the_other_one(steps: list[tuple[int, int, int]]):
    """Allocations of every pool and segment, frees in any order, now and then a cache that is cleared."""
    events: list[int] = []
    sizes: list[int] = []
    alive: list[int] = []
    for kind, size, which in steps:
        if kind == 5:
            events.append(EMPTY_CACHE)
        elif kind >= 3 and alive:
            events.append(~alive.pop(which % len(alive)))
        else:
            alive.append(len(sizes))
            events.append(len(sizes))
            sizes.append(size if kind else size % 2**20)
    old = [
        ("empty_cache", 0, 0) if e == EMPTY_CACHE else ("alloc", e, sizes[e]) if e >= 0 else ("free", ~e, 0)
        for e in events
    ]
    run = replay(old)
    quick = Quick()
    half = len(events) // 2
    first, second = quick.run(events[:half], sizes), quick.run(events[half:], sizes)
    assert max(first[0], second[0]) == max(run.allocated, default=0)
    assert max(first[1], second[1]) == max(run.reserved, default=0)
    capacity = smallest_capacity(events, sizes, max(run.reserved, default=0))
    assert capacity == other_capacity(old)
    for mode in ("native", "expandable"):  # what is reserved without a bound is enough: nothing to replay
        most = max(replay(old, mode=mode).reserved, default=0)
        assert replay(old, mode=mode, capacity=most).oom is None
    for bound in (capacity, capacity - 2**21, capacity + 2**21, max(run.reserved, default=0)):
        assert survives(events, sizes, bound) == (replay(old, capacity=bound).oom is None)
    assert (quick.allocated, quick.reserved) == ((run.allocated[-1], run.reserved[-1]) if events else (0, 0))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(MODELS[:3]),
    st.sampled_from(SETUPS),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 900)), min_size=2, max_size=3),
    st.sampled_from(["2.11", "2.14"]),
)
def test_a_run_written_once_is_the_run_written_for_its_size(
    name: str, fields: dict[str, Any], sizes: list[tuple[int, int]], torch: str
):
    """Events shared between sizes, replayed by the quick allocator, against those of a run of their own in
    the allocator that says what it does at each.
    """
    spec = find(small(name)).spec()
    setup = resolve({**fields, "torch": torch}, max_positions=spec.max_positions)
    shared: dict[int, Run] = {}
    for batch, sequence in sizes:
        structure = symbolic(spec, setup)
        tape = structure.program(structure.guard(batch, sequence)).tape
        values = {"B": batch, "S": sequence, "R": rank_of(setup)}
        run = shared.setdefault(id(tape), Run(structure.rank, tape, None))
        ties = TORCH_VERSIONS[torch].equal_blocks
        found, alone = replayed(run, values, "native", ties), Run(structure.rank, tape, None).events(values)
        assert (found.events.events, found.events.sizes) == (alone.events, alone.sizes)
        whole = replay(found.as_events, ties=ties)
        assert found.allocated_bytes == max(whole.allocated)
        assert found.reserved_bytes == max(whole.reserved)
        assert found.step_reserved_bytes == max(whole.reserved[alone.steady - 1 :])
        for bound in (found.reserved_bytes, found.allocated_bytes):
            assert found.survives(bound) == (replay(found.as_events, capacity=bound, ties=ties).oom is None)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama-7b", {"method": "qlora", "recipe": "raw", "checkpointing": "none", "retain_outputs": True}),
        (
            "llama-7b",
            {"method": "full", "recipe": "raw", "gradient_accumulation": 2, "retain_outputs": True},
        ),
        ("llama-7b", {"method": "inference", "retain_outputs": True, "micro_batch": 4}),
        ("gpt-j-6b", {"method": "lora", "recipe": "raw", "optimizer": "adamw_torch", "micro_batch": 4}),
        ("pythia-160m", {"method": "lora", "recipe": "raw", "micro_batch": 4}),
        ("falcon-7b", {"method": "inference", "micro_batch": 4}),
    ],
    ids=lambda each: each if isinstance(each, str) else " ".join(map(str, each.values())),
)
def test_what_names_hold_is_freed_when_they_go(name: str, fields: dict[str, Any]):
    """Outputs that a loop's variable holds go when the next forward has returned, an answer before the next
    prompt is read, the MLP's output of a parallel layer with its layer.
    """
    from memplan.planner.trace.engine import trace

    model = small_gpt(name) if "gpt-j" in name else small(name)
    if "falcon" in name:  # whose config computes it
        del model["head_dim"]
    setup = resolve({"sequence_length": 500, **fields})
    theirs, ours = trace(model, setup).peak, replay_of(find(model).spec(), setup)
    assert ours is not None
    assert ours.allocated_bytes == pytest.approx(theirs.allocated_bytes, rel=0.003)
    assert ours.reserved_bytes == pytest.approx(theirs.reserved_bytes, rel=0.01, abs=SEGMENT)


@pytest.mark.parametrize("name", ["rtx-4090", "rtx-4080", "t4", "h100-80gb", "24gb", "mi300x", "rtx-5090"])
def test_a_structure_is_shared_by_gpus_of_one_compute_capability(name: str):
    spec, gpu = find("llama-7b").spec(), find_gpu(name)
    shared = symbolic(spec, resolve({"gpu": gpu.name}))
    assert shared.device == device_of(resolve({"gpu": gpu.name}))
    alike = [other for other in gpus().values() if other.capability == gpu.capability and gpu.capability]
    assert all(symbolic(spec, resolve({"gpu": other.name})) is shared for other in alike)


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "qlora", "sequence_length": 512},
        {"method": "lora", "micro_batch": 2, "sequence_length": 512, "load": "random"},
        {"method": "full", "checkpointing": "non_reentrant", "sequence_length": 512},
        {"method": "qlora", "allocator": "expandable", "recipe": "axolotl", "quant_type": "int8"},
        {"method": "adalora", "sequence_length": 512},
        {"method": "dora", "quant_type": "nf4", "sequence_length": 512},
        {"method": "full", "recipe": "raw", "optimizer": "adamw_torch", "gradient_accumulation": 4},
    ],
    ids=lambda fields: " ".join((fields["method"], fields.get("recipe", ""))).strip(),
)
def test_reserved_and_capacity_are_the_traces(fields: dict[str, Any]):
    from memplan.planner.trace.engine import trace

    config, setup = small("llama-7b"), resolve(fields)
    theirs = trace(config, setup)
    ours = plan(find(config).spec(), setup)  # a small pool's segment is 1 % of what so small a model reserves
    assert ours.peak.reserved_bytes == pytest.approx(theirs.peak.reserved_bytes, rel=0.005, abs=SEGMENT)
    assert ours.capacity_bytes == pytest.approx(theirs.smallest_capacity_bytes, rel=0.005, abs=SEGMENT)


@pytest.mark.parametrize(("torch", "mib"), [("2.11", 7680), ("2.12", 7928), ("2.14", 7678)])
def test_llama_7b_under_qlora_reserves_what_the_trace_reserves(torch: str, mib: int):
    """The trace's own MiB (transformers 5.24, peft 0.21.2, bitsandbytes 0.50), by both of torch's rules for
    equal blocks.
    """
    found = plan(find("llama-7b").spec(), resolve({"method": "qlora", "torch": torch}))
    assert found.peak.reserved_bytes == mib * 2**20


def test_a_capacity_survives_and_the_next_smaller_one_does_not():
    run = replay_of(find("llama-7b").spec(), resolve({"method": "qlora", "sequence_length": 512}))
    assert run is not None
    capacity = run.smallest_capacity()
    assert run.allocated_bytes <= capacity <= run.reserved_bytes
    assert run.survives(capacity) and not run.survives(capacity - max(2**21, capacity // 4096))
    assert run.smallest_capacity("expandable") <= capacity
    assert run.survives(run.reserved_bytes)
    assert not run.survives(run.allocated_bytes // 2) and not run.survives(
        run.allocated_bytes // 2, "expandable"
    )


def test_expandable_segments_leave_less_between_tensors():
    spec = find("llama-7b").spec()
    native, expandable = (
        plan(spec, resolve({"method": "qlora", "allocator": mode})).peak for mode in ("native", "expandable")
    )
    assert native.reserved_bytes - expandable.reserved_bytes > GIB // 4
    assert expandable.allocated_bytes <= expandable.reserved_bytes


def test_what_has_no_run_is_estimated_and_it_is_said():
    setup = resolve({"method": "lora", "gpus": 2, "parallel": "zero3"})
    assert replay_of(find("llama-7b").spec(), setup) is None
    found = replay_of(
        find("llama-7b").spec(), resolve({"method": "lora", "device": "cpu", "autocast": "none"})
    )
    assert found is None
