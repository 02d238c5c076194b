"""Published step times over the least time that memplan states for them: `python benchmarks/step_time.py
[--write]`, slowest first.

The runs are those of validate/step_times.json. `--write` keeps the ratios by compute capability in
planner/tables/step_time_ratios.json, which `memplan plan --tokens` takes its range from; a test scores the
runs again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from memplan.planner.formula.step_time import least_seconds
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.gpus import find_gpu

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "validate" / "step_times.json"
RATIOS = ROOT / "planner" / "tables" / "step_time_ratios.json"


def ratio(run: dict[str, Any]) -> float:
    """Measured seconds over the least seconds."""
    setup = resolve({**run["setup"], "gpu": run["gpu"]})
    return float(run["seconds"] / least_seconds(find(run["model"]).spec(), setup, find_gpu(run["gpu"])))


def runs() -> list[dict[str, Any]]:
    """Every published run."""
    return list(json.loads(RUNS.read_text(encoding="utf-8"))["runs"])


def by_capability(scored: list[tuple[dict[str, Any], float]]) -> dict[str, dict[str, Any]]:
    """GPUs and sorted ratios of each compute capability."""
    found: dict[str, dict[str, Any]] = {}
    for run, value in scored:
        gpu = find_gpu(run["gpu"])
        assert gpu.capability is not None
        entry = found.setdefault(".".join(map(str, gpu.capability)), {"gpus": [], "ratios": []})
        entry["gpus"] = sorted({*entry["gpus"], gpu.name})
        entry["ratios"] = sorted([*entry["ratios"], round(value, 2)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    scored = sorted(((run, ratio(run)) for run in runs()), key=lambda pair: -pair[1])
    for run, value in scored:
        print(f"{value:6.2f}  {run['seconds']:8.3f} s  {run['id']}")
    found = by_capability(scored)
    for capability, entry in found.items():
        values = entry["ratios"]
        print(
            f"capability {capability} ({', '.join(entry['gpus'])}): {len(values)} runs, {min(values)} to "
            f"{max(values)}, median {statistics.median(values)}"
        )
    if parser.parse_args().write:
        RATIOS.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
