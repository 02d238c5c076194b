"""What the formula's replay reserves against what the trace's does: `python benchmarks/reserved.py [COUNT]
[--seed N] [--catalog] [--out FILE]`, worst first, then a table.

Cases are those of formula_vs_trace.py, on CUDA and one GPU, or with --catalog every catalog model of at most
40 billion parameters (COUNT: so many of them, drawn by seed) under LoRA and QLoRA as recipe hf has them. FILE
keeps what the trace found, one JSON document a line, a random case with its own model and setup (what a seed
draws changes with the catalog); a run goes on where the file ends, and the formula, which takes a fraction of
a second, is asked anew each time. `reserved`: the peak over load and two steps;
`capacity`: the smallest that survives.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from formula_vs_trace import LARGEST, case, done, legal, percentile

from memplan.planner.formula.engine import replay_of
from memplan.planner.inputs.models import find, index
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import context_bytes

Case = tuple[str, str, Mapping[str, Any], dict[str, Any]]  # key, model's name, config, fields


def drawn(seed: int, count: int, known: Mapping[str, Mapping[str, Any]]) -> Iterator[Case]:
    """Random cases, by seed and number; a recorded one is the record's."""
    for number in range(count):
        key = f"{seed}-{number}"
        if record := known.get(key):
            name = record["model"]
            yield key, name, record.get("config") or find(name).config, dict(record["fields"])
        else:
            yield key, *case(seed, number)


def catalog(seed: int, count: int | None) -> Iterator[Case]:
    """So many catalog models of one GPU's size, drawn by seed (None: all), under LoRA and QLoRA."""
    names = [name for name, row in index().items() if row["parameters"] < LARGEST]
    for name in names if count is None else random.Random(seed).sample(names, count):
        for method in ("lora", "qlora"):
            yield f"{name} {method}", name, find(name).config, {"method": method}


def traced(config: Mapping[str, Any], setup: Setup) -> dict[str, Any]:
    """What the trace reserves, or why it refuses."""
    from memplan.planner.trace.device.target import target_of
    from memplan.planner.trace.engine import recorded
    from memplan.planner.trace.events.timeline import Timeline

    try:
        log, _ = recorded(config, setup)
    except UsageError as error:
        return {"refused": str(error)}
    timeline = Timeline(log, setup, target_of(setup))
    _, peak, step_peak = timeline.moments()
    capacity = timeline.smallest_capacity()
    assert capacity is not None
    return {
        "allocated": peak.allocated_bytes,
        "reserved": peak.reserved_bytes,
        "step_reserved": step_peak.reserved_bytes,
        "capacity": capacity - context_bytes(setup.gpu),
    }


def compared(config: Mapping[str, Any], setup: Setup, trace: Mapping[str, Any]) -> dict[str, Any] | None:
    """The formula's errors on one case; None where either engine refuses it."""
    if "refused" in trace:
        return None
    try:
        found = replay_of(find(config).spec(), setup)
    except UsageError:
        return None
    assert found is not None
    return {
        "reserved": found.reserved_bytes / trace["reserved"] - 1,
        "allocated": found.allocated_bytes / trace["allocated"] - 1,
        "capacity": found.smallest_capacity() / trace["capacity"] - 1,
    }


def table(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Median, P95 and worst of each number, over all, by method and by allocator mode."""
    yield f"{'':24}{'runs':>6}" + "".join(f"{what:>10}{'P95':>8}{'worst':>9}" for what in NUMBERS)
    groups: dict[str, list[Mapping[str, Any]]] = {"all": list(results)}
    for r in results:
        groups.setdefault(r["method"], []).append(r)
        groups.setdefault(r["allocator"], []).append(r)
    for name, group in groups.items():
        cells = ""
        for what in NUMBERS:
            errors = [abs(r[what]) for r in group]
            cells += f"{statistics.median(errors):10.2%}{percentile(errors, 0.95):8.2%}{max(errors):9.2%}"
        yield f"{name:24}{len(group):6}{cells}"


NUMBERS = ("reserved", "allocated", "capacity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", nargs="?", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--catalog", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", type=int, default=10)
    asked = parser.parse_args()
    known = {document["key"]: document for document in done(asked.out)}
    results = []
    if asked.catalog:
        cases = catalog(asked.seed, asked.count)
    else:
        cases = drawn(asked.seed, asked.count or 60, known)
    for key, name, config, fields in cases:
        setup = legal(dict(config), fields)
        if setup is None:
            continue
        if key not in known:
            began = time.perf_counter()
            drew = {"model": name, "fields": fields, **({} if name in index() else {"config": config})}
            found = {"key": key, **({} if asked.catalog else drew), **traced(config, setup)}
            known[key] = found | {"seconds": round(time.perf_counter() - began, 2)}
            if asked.out is not None:
                with asked.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(known[key]) + "\n")
        errors = compared(config, setup, known[key])
        if errors is not None:
            about = {"method": setup.method, "allocator": setup.allocator}
            results.append({"key": key, "model": name, "fields": fields, **about, **errors})
    for r in sorted(results, key=lambda r: -abs(r["reserved"]))[: asked.show]:
        print(f"{r['key']} {r['model']}: " + ", ".join(f"{what} {r[what]:+.2%}" for what in NUMBERS))
        print(f"    {r['fields']}")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
