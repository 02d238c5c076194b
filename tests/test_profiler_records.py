"""The records that are kept in the repository: complete, current, and within what they are said to show."""

from __future__ import annotations

from pathlib import Path

import pytest

from memplan.profiler import case_matrix, record

ROOT = Path(__file__).parents[1]
RECORDS, PROBLEMS = record.scan(ROOT / "measurements")


def test_every_file_is_a_record() -> None:
    assert PROBLEMS == []
    assert RECORDS


def test_the_cpu_campaign_is_recorded_whole() -> None:
    cases = case_matrix.read(ROOT / "campaigns" / "cpu.yaml").cases
    recorded = {(m.case, m.setup.to_document()["method"]) for path, m in RECORDS if path.parent.name == "cpu"}
    assert recorded == {(case.name, case.setup.method) for case in cases}


@pytest.mark.parametrize(("path", "m"), RECORDS, ids=[path.stem for path, _ in RECORDS])
def test_a_record_carries_its_prediction_and_every_moment_is_within_one_percent(
    path: Path, m: record.Measurement
) -> None:
    assert path.parent.name == record.folder_of(m.environment)
    assert path.name.endswith(record.file_name(m.case, m.identity))
    assert m.prediction is not None or any("not predicted" in warning for warning in m.warnings)
    if m.outcome != "ok" or m.environment["device"] != "cpu":
        return
    assert m.prediction is not None
    assert m.alignment is not None
    for moment in m.prediction["moments"]:
        assert moment["allocated_bytes"] == pytest.approx(
            m.moment(moment["name"]).allocated_bytes, rel=0.01
        ), moment["name"]
    assert m.alignment["events"]["matched"] >= 0.97 * m.alignment["events"]["predicted"]


def test_the_readme_says_whether_a_gpu_was_ever_recorded() -> None:
    said = "No GPU run of our own has been recorded yet" in (ROOT / "measurements" / "README.md").read_text(
        encoding="utf-8"
    )
    assert said == all(m.environment["device"] == "cpu" for _, m in RECORDS)
