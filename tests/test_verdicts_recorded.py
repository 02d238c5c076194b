"""Recorded traces of random setups, judged by the formula again: no FITS that the trace does not survive.

`measurements/verdicts.jsonl` has what benchmarks/verdicts.py recorded, docs/verdicts.md what came of it.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RECORDS = [json.loads(line) for line in (ROOT / "measurements" / "verdicts.jsonl").read_text().splitlines()]
RAN = [record for record in RECORDS if "refused" not in record]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for library in ("torch", "transformers", "peft"):
        pytest.importorskip(library)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("verdicts")


def quickest(count: int) -> list[dict[str, Any]]:
    return sorted(RAN, key=lambda record: record["seconds"])[:count]


def test_three_hundred_setups_are_recorded() -> None:
    assert len(RAN) >= 300
    assert len({record["key"] for record in RECORDS}) == len(RECORDS)


@pytest.mark.parametrize("record", quickest(12), ids=lambda r: f"{r['key']}-{r['model']}")
def test_no_fits_is_refuted(script: ModuleType, record: dict[str, Any]) -> None:
    found = script.compared(record)
    assert found is not None
    assert not [v for v in found.verdicts if v.refuted] and found.spare >= 0


@pytest.mark.slow
def test_no_fits_of_all_is_refuted_and_few_are_tight(script: ModuleType) -> None:
    found = [verdict for result in script.of(RAN) for verdict in result.verdicts]
    assert not [v for v in found if v.refuted]
    assert sum(v.word == "tight" for v in found) <= 0.15 * len(found)


def test_a_refuted_fits_is_told(script: ModuleType) -> None:
    """The check can fail: a run that needs more than what the formula was asked about."""
    record = quickest(1)[0]
    more = dict.fromkeys(("allocated", "reserved", "capacity"), 2**40)
    found = script.compared(record | more)
    assert found.spare < 0 and any(v.refuted for v in found.verdicts)


def test_the_document_is_of_these_records(script: ModuleType) -> None:
    text = (ROOT / "docs" / "verdicts.md").read_text(encoding="utf-8")
    assert f"(digest {script.digest(script.RECORDS)})" in text, (
        "run: python benchmarks/verdicts.py --table > docs/verdicts.md"
    )
