"""A run whose steps have different lengths through the allocator: against runs of equal steps, against the
allocator's port event by event, and against dry runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from dryrun_lengths import Case, dry_run, replayed

from memplan import api
from memplan.planner.allocator.native import OutOfMemory
from memplan.planner.allocator.replay import Event, Mode, RunningReplay
from memplan.planner.formula.engine import plan, replay_of, run_of, symbolic, varied_run
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec

PYTHON = os.environ.get("MEMPLAN_DRYRUN_PYTHON")
MODES: tuple[Mode, ...] = ("native", "expandable")
STEPS = [(300, True), (1000, True), (310, True), (1000, False), (640, True), (999, True)]


def asked(method: str, **fields: Any) -> tuple[ModelSpec, Setup]:
    model, setup = api.request("qwen2.5-0.5b", method=method, batch=4, seq=1000, padded=True, **fields)
    return model.spec(), setup


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["full", "qlora"])
def test_equal_steps_are_the_run_of_their_length(method: str, mode: Mode) -> None:
    spec, setup = asked(method, allocator=mode)
    run, whole = varied_run(spec, setup), replay_of(spec, setup)
    assert run is not None and whole is not None
    found = [run.step((1000, True)) for _ in range(3)]
    assert max(found[0][1], found[1][1]) == whole.reserved_bytes
    assert found[1] == (whole.step_allocated_bytes, whole.step_reserved_bytes)
    assert found[2][0] == found[1][0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fields", [{}, {"gradient_accumulation": 4}, {"recipe": "raw"}])
def test_each_event_is_what_the_allocators_port_makes_of_it(mode: Mode, fields: dict[str, Any]) -> None:
    """The same steps as one list of events with an id for each tensor: what a step frees of the one before is
    looked up by its place among what that left.
    """
    spec, setup = asked("lora", allocator=mode, **fields)
    run = varied_run(spec, setup)
    assert run is not None
    port, names, left = RunningReplay(mode, ties=_ties(spec, setup)), 0, []
    for number, step in enumerate(STEPS):
        this = setup.with_(padded=step[1])
        events_of = run_of(spec, this, symbolic(spec, this).guard(4, step[0]))
        assert events_of is not None
        made = events_of.events({"B": 4, "S": step[0], "R": setup.rank})
        steady = events_of.written(setup.rank).steady
        own = made.events[: made.steady] if number == 0 else steady.events
        known = {} if number == 0 else dict(zip(steady.given, left, strict=True))
        events: list[Event] = []
        for each in own:
            if each < 0:
                events.append(("free", known[~each], 0))
            elif each < len(made.sizes):
                known[each], names = names, names + 1
                events.append(("alloc", known[each], made.sizes[each]))
            else:
                events.append(("empty_cache", 0, 0))
        before = len(port.result.allocated)
        port.run(events)
        assert run.step(step) == (max(port.result.allocated[before:]), max(port.result.reserved[before:]))
        left = [known[each] for each in (steady.given if number == 0 else steady.left)]


def _ties(spec: ModelSpec, setup: Setup) -> Any:
    whole = replay_of(spec, setup)
    assert whole is not None
    return whole.ties


def test_a_bound_is_kept_by_giving_the_cache_back() -> None:
    spec, setup = asked("lora")

    def reserved(capacity: int | None) -> tuple[int, int]:
        run = varied_run(spec, setup, capacity=capacity)
        assert run is not None
        return max(run.step(step)[1] for step in STEPS), run.releases

    free, none = reserved(None)
    assert none == 0 and free > plan(spec, setup).peak.reserved_bytes
    assert reserved(free) == (free, 0)
    bounded, releases = reserved(free - 2**21)
    assert bounded < free and releases > 0
    with pytest.raises(OutOfMemory):
        reserved(plan(spec, setup).peak.allocated_bytes // 2)


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="MEMPLAN_DRYRUN_PYTHON names no CUDA build of torch")
@pytest.mark.parametrize(
    "case",
    [Case("lora", 4, steps=12), Case("full", 3, "group_by_length", steps=12), Case("lora", 2, gpu="2.95GiB")],
    ids=lambda case: f"{case.method}-{case.sampling}-{case.gpu}",
)
def test_a_trainer_reserves_as_much(case: Case, tmp_path: Path) -> None:
    assert PYTHON is not None
    seen, steps = dry_run(case, tmp_path, PYTHON)
    found = replayed(case, tmp_path, steps)
    assert (found.steps, found.releases) == (seen.steps, seen.retries)
    assert found.reserved == pytest.approx(seen.reserved_bytes, rel=0.01)
    assert found.allocated == pytest.approx(seen.allocated_bytes, rel=0.005)
