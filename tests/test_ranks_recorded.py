"""Recorded dry runs of ranks, predicted by the formula's replay; and streams in the allocator."""

from __future__ import annotations

import importlib
import json
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from memplan.planner.allocator.quick import Quick
from memplan.planner.allocator.quick import smallest_capacity as quick_capacity
from memplan.planner.allocator.replay import MODES, Event, Mode, replay, smallest_capacity
from memplan.planner.answers.verdict import need_of
from memplan.planner.formula.engine import plan, replay_of
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve

ROOT = Path(__file__).parents[1]
FILE = ROOT / "measurements" / "dryrun_ranks.jsonl"
RECORDS = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
RAN = [record for record in RECORDS if "dry_run" in record]
APART = {11: 0.0300, 42: 0.0125, 4: 0.0042, 62: 0.0099, 58: 0.0014}
"""The recorded runs that are not met to the byte, and by which share at most."""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for library in ("torch", "transformers", "tokenizers"):
        pytest.importorskip(library)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("ranks")


def test_the_page_is_of_these_records(script: ModuleType) -> None:
    text = (ROOT / "docs" / "ranks.md").read_text(encoding="utf-8")
    assert script.digest(FILE) in text, (
        "run: python benchmarks/ranks.py --page measurements/dryrun_ranks.jsonl > docs/ranks.md"
    )
    assert len(RAN) >= 30 and len({json.dumps(r["fields"]) + json.dumps(r["config"]) for r in RAN}) == len(
        RAN
    )


@pytest.mark.parametrize(
    "record", [*RAN[:16], *RAN[48:56]], ids=lambda r: f"{r['case']}-{'-'.join(map(str, kind(r)))}"
)
def test_a_rank_reserves_what_its_dry_run_did(script: ModuleType, record: dict[str, Any]) -> None:
    assert abs(script.error(record)) <= APART.get(record["case"], 0)


def kind(record: dict[str, Any]) -> list[str]:
    return [record["fields"][name] for name in ("parallel", "recipe", "method")]


@pytest.mark.slow
def test_every_recorded_run_is_met(script: ModuleType) -> None:
    assert {r["case"] for r in RAN if abs(script.error(r)) > APART.get(r["case"], 0)} == set()


# ---- the verdict -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", ("ddp", "fsdp"))
def test_a_replayed_rank_has_a_range_and_a_margin(parallel: str) -> None:
    spec = find("llama-3.2-1b").spec()
    setup = resolve({"method": "full", "checkpointing": "non_reentrant", "parallel": parallel, "gpus": 4})
    found = plan(spec, setup)
    need = need_of(found)
    assert need.margin > 0 and need.survival is not None
    assert found.peak.allocated_bytes <= found.peak.reserved_bytes
    assert need.survival.smallest_capacity() <= found.peak.reserved_bytes
    assert found.extra.get("expandable_capacity_bytes") is None
    assert "not replayed" not in " ".join(found.assumptions)


def test_a_race_makes_two_courses_and_the_larger_must_fit() -> None:
    fields = {"method": "full", "parallel": "ddp", "gpus": 2, "checkpointing": "non_reentrant"}
    spec = find("llama-3.2-1b").spec()
    run = replay_of(spec, resolve(fields))
    assert run is not None and len(run.courses) == 2
    assert run.reserved_bytes == max(run.reserved_of)
    assert run.smallest_capacity() <= min(run.reserved_of)
    alone = replay_of(
        spec, resolve({**fields, "checkpointing": "none"})
    )  # the Trainer then keeps its buckets
    assert alone is not None and len(alone.courses) == 1


@pytest.mark.parametrize(
    "fields",
    (
        {"parallel": "zero2"},
        {"parallel": "fsdp", "offload": "all"},
        {"parallel": "fsdp", "gradient_accumulation": 2},
    ),
)
def test_what_is_not_written_out_is_said(fields: dict[str, Any]) -> None:
    found = plan(find("llama-3.2-1b").spec(), resolve({"gpus": 2, **fields}))
    assert found.survival is None
    assert any("is not replayed" in each for each in found.assumptions)


# ---- streams -----------------------------------------------------------------------------------------------


def course(seed: int) -> tuple[list[Event], dict[int, str]]:
    """Random allocations and frees on three streams."""
    rng, events, live = random.Random(seed), list[Event](), list[int]()
    streams: dict[int, str] = {}
    for number in range(300):
        if live and rng.random() < 0.45:
            events.append(("free", live.pop(rng.randrange(len(live))), 0))
            continue
        if stream := rng.choice(("", "", "gathers", "reduces")):
            streams[number] = stream
        events.append(("alloc", number, rng.choice((300, 70_000, 900_000, 3 << 20, 15 << 20))))
        live.append(number)
    return events, streams


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(3))
def test_a_block_serves_one_stream_alone(mode: Mode, seed: int) -> None:
    """So what is reserved is what each stream's requests alone reserve, at the end; a bound releases all."""
    events, streams = course(seed)
    whole = replay(events, mode=mode, streams=streams)
    parts = []
    for stream in ("", "gathers", "reduces"):
        own = [each for each in events if streams.get(each[1], "") == stream]
        parts.append(replay(own, mode=mode).reserved[-1])
    assert whole.reserved[-1] == sum(parts) > replay(events, mode=mode).reserved[-1]
    capacity = smallest_capacity(events, mode, streams=streams)
    assert replay(events, mode=mode, capacity=capacity, streams=streams).oom is None
    assert replay(events, mode=mode, capacity=capacity - (2 << 20), streams=streams).oom is not None


@pytest.mark.parametrize("seed", range(3))
def test_the_quick_allocator_has_the_same_streams(seed: int) -> None:
    events, streams = course(seed)
    sizes = [0] * 300
    for kind_, key, nbytes in events:
        if kind_ == "alloc":
            sizes[key] = nbytes
    plain = [key if kind_ == "alloc" else ~key for kind_, key, _ in events]
    most = max(replay(events, streams=streams).reserved)
    assert Quick().run(plain, sizes, streams)[1] == most
    assert quick_capacity(plain, sizes, most, streams=streams) == smallest_capacity(events, streams=streams)
