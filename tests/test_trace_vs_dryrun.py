"""Recorded dry runs of torch's own CUDA code, predicted again: no prediction moves away from them.

`measurements/dryrun/` has what benchmarks/trace_vs_dryrun.py recorded; no CUDA build is needed here.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

for library in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(library)
ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "measurements" / "dryrun").glob("*.jsonl"))
LIMIT = 5 << 20  # bytes of all records


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "trace_vs_dryrun", ROOT / "benchmarks" / "trace_vs_dryrun.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def recorded() -> list[dict[str, Any]]:
    lines = [line for path in FILES for line in path.read_text(encoding="utf-8").splitlines()]
    return [record for record in map(json.loads, lines) if "trace" in record]


def quickest(count: int) -> list[dict[str, Any]]:
    return sorted(recorded(), key=lambda record: record["trace"]["events"])[:count]


@pytest.mark.parametrize("record", quickest(20), ids=lambda r: f"{r['versions']['torch'][:4]}-{r['case']}")
def test_a_recorded_dry_run_is_predicted_as_well_as_before(
    script: ModuleType, record: dict[str, Any]
) -> None:
    now = script.again(record)
    for name in script.NUMBERS:
        assert abs(script.error(now, name)) <= abs(script.error(record, name)), (name, record["fields"])


def test_records_are_compact_and_never_called_measurements() -> None:
    assert FILES and sum(path.stat().st_size for path in FILES) <= LIMIT
    for record in recorded():
        assert {"case", "seed", "model", "config", "fields", "versions", "trace", "dry_run"} <= record.keys()
        assert "measured" not in record and "measurement" not in record


def test_the_table_in_the_docs_is_the_records(script: ModuleType) -> None:
    page = (ROOT / "docs" / "dry-run.md").read_text(encoding="utf-8")
    table = script.table([script.random_setups.done(path) for path in FILES])
    assert table in page, "run: python benchmarks/trace_vs_dryrun.py --table measurements/dryrun/*.jsonl"


def test_an_error_is_the_trace_less_the_dry_run(script: ModuleType) -> None:
    record = {
        "versions": {"torch": "2.14.1+cu130"},
        "trace": dict.fromkeys(script.NUMBERS, 110) | {"sequence": "a"},
        "dry_run": dict.fromkeys(script.NUMBERS, 100) | {"sequence": "b", "oom": False},
    }
    assert script.error(record, "reserved") == pytest.approx(0.1)
    found = script.summary([record, {"refused": "trace"}])
    assert (found["runs"], found["refused"], found["sequences"]) == (1, 1, 0.0)
    assert found["allocated"] == pytest.approx({"equal": 0.0, "median": 0.1, "P95": 0.1, "worst": 0.1})
