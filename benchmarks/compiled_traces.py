"""Compiled traces against direct ones: `python benchmarks/compiled_traces.py [--out FILE] [MODEL ...]`.

One catalog model of each architecture that has no formula family, under a setup drawn from the model's name
(method, checkpointing, attention, padding). Its programs are solved at their own sizes and asked for five
others, in both regimes (micro-batch 1, and more): every moment's allocated bytes, what is reserved, and the
smallest capacity are held against a direct trace. FILE keeps one JSON document a line; a run goes on where it
ends.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memplan.planner.compiled.engine import Compiled
from memplan.planner.compiled.nodes import Point
from memplan.planner.compiled.regime import Regime, regimes
from memplan.planner.inputs.families.table import FAMILIES
from memplan.planner.inputs.models import find, index
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError
from memplan.planner.trace.engine import trace

SIZES: tuple[Point, ...] = ((1, 1280), (1, 4096), (2, 768), (4, 2048), (6, 1024))


def models() -> dict[str, str]:
    """The smallest catalog model of each model_type that the formula has no family for."""
    found: dict[str, str] = {}
    for name, _ in sorted(index().items(), key=lambda item: item[1]["parameters"]):
        kind = find(name).config["model_type"]
        if kind not in FAMILIES:
            found.setdefault(kind, name)
    return found


def drawn(kind: str) -> dict[str, Any]:
    """Setup fields of one architecture's case."""
    rng = random.Random(kind)
    return {
        "method": rng.choice(("lora", "lora", "qlora", "full", "dora")),
        "checkpointing": rng.choice(("non_reentrant", "none")),
        "attention": rng.choice(("sdpa", "sdpa", "eager")),
        "padded": rng.random() < 0.3,
    }


def resolved(fields: dict[str, Any]) -> Setup:
    """The setup, without what an architecture has no path for."""
    return resolve(fields)


def case(kind: str, name: str) -> dict[str, Any]:
    """The outcome of one architecture: errors at each size, or why it was not compared."""
    fields = drawn(kind)
    found: dict[str, Any] = {"model_type": kind, "model": name, "fields": fields, "sizes": []}
    config = find(name).config
    for plainer in ({}, {"attention": "eager"}, {"method": "lora", "attention": "eager"}):
        setup = resolved({**fields, **plainer})
        try:
            trace(config, setup.replaced(micro_batch=2, sequence_length=512))
            break
        except UsageError as error:
            found["refused"] = str(error)
    else:
        return found
    found.pop("refused", None)
    found["fields"] = {**fields, **plainer}
    notes: list[str] = []
    compiled = Compiled(config, setup, progress=notes.append)
    for point in SIZES:
        ours = compiled.at(point, solve=True)
        theirs = trace(config, setup.replaced(micro_batch=point[0], sequence_length=point[1]))
        found["sizes"].append({"point": point, "from": _source(compiled, point), **errors(ours, theirs)})
    found["unsolved"] = [note for note in notes if not note.startswith("tracing")]
    return found


def _source(compiled: Compiled, point: Point) -> str:
    """Which kind of program answered for a point."""
    setup = compiled.setup.replaced(micro_batch=point[0], sequence_length=point[1])
    for wanted in regimes(compiled.config, setup):
        if compiled.program(wanted, solve=False) is not None:
            return _kind(wanted)
    return "none"


def _kind(regime: Regime) -> str:
    if not regime.fixed:
        return "regime"
    return "micro-batch" if regime.batch is None else "point"


def errors(ours: Prediction, theirs: Prediction) -> dict[str, float]:
    """Relative errors: the worst moment's allocated bytes, reserved, and the smallest capacity."""
    moments = max(
        abs(ours.moment(each.moment).allocated_bytes / each.allocated_bytes - 1) for each in theirs.moments
    )
    capacity = (ours.smallest_capacity_bytes or 0) / (theirs.smallest_capacity_bytes or 1) - 1
    reserved = ours.peak.reserved_bytes / theirs.peak.reserved_bytes - 1
    return {"moments": moments, "reserved": abs(reserved), "capacity": abs(capacity)}


def sweep(chosen: dict[str, str]) -> Iterator[dict[str, Any]]:
    """One document for each architecture."""
    for kind, name in chosen.items():
        began = time.perf_counter()
        yield case(kind, name) | {"seconds": round(time.perf_counter() - began, 1)}


def show(results: list[dict[str, Any]]) -> None:
    """One line an architecture, then the summary."""
    for each in results:
        worst = max(
            (max(s[k] for k in ("moments", "reserved", "capacity")) for s in each["sizes"]), default=None
        )
        kinds = ", ".join(dict.fromkeys(s["from"] for s in each["sizes"]))
        said = f"worst {worst:.4%} ({kinds})" if worst is not None else f"refused: {each['refused'][:90]}"
        print(f"{each['model_type']:20} {each['model']:24} {each['fields']['method']:6} {said}")
    sizes = [size for each in results for size in each["sizes"]]
    solved = [size for size in sizes if size["from"] != "point"]
    for name, chosen in (("all sizes", sizes), ("sizes that were not traced", solved)):
        if chosen:
            values = [max(s["moments"], s["reserved"], s["capacity"]) for s in chosen]
            print(f"{name}: {len(values)}, median {statistics.median(values):.4%}, worst {max(values):.4%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_types", nargs="*", metavar="MODEL_TYPE")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    every = models()
    wanted = {kind: every[kind] for kind in chosen.model_types or every}
    results = []
    if chosen.out is not None and chosen.out.exists():
        results = [json.loads(line) for line in chosen.out.read_text(encoding="utf-8").splitlines()]
    known = {each["model_type"] for each in results}
    for result in sweep({kind: name for kind, name in wanted.items() if kind not in known}):
        results.append(result)
        print(f"{result['model_type']}: {result['seconds']} s", flush=True)
        if chosen.out is not None:
            with chosen.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
    show(results)


if __name__ == "__main__":
    main()
