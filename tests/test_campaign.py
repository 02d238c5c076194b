"""What a campaign's run leaves: a record a case whatever happens to one, a search for a cap, and nothing
measured twice.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from campaign_fakes import MIB, TARGETS, TINY, many

from memplan.planner.tables.errors import UsageError
from memplan.profiler import nvml, record
from memplan.profiler.campaign import Progress, Targets, run
from memplan.profiler.case_matrix import expand


def test_a_run_leaves_a_record_a_case_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    out, archive, seen = tmp_path / "out", tmp_path / "all.jsonl", list[Progress]()
    first = run(many(4), out, targets=TARGETS, preload=(), archive=archive, listen=seen.append)
    assert (first.progress.done, first.progress.failed, first.stopped) == (4, 0, None)
    found, problems = record.scan(out)
    assert len(found) == 4
    assert problems == []
    assert all(
        measurement.prediction and measurement.prediction["engine"] == "trace" for _, measurement in found
    )
    assert len(archive.read_text().splitlines()) == 4
    assert seen[-1].missing == 0
    assert any(progress.measuring for progress in seen)
    before = {path: path.read_bytes() for path, _ in found}
    again = run(many(6), out, targets=TARGETS, preload=(), archive=archive)
    assert (again.progress.already, again.progress.done) == (4, 2)
    assert {path: path.read_bytes() for path in before} == before
    assert len(archive.read_text().splitlines()) == 6


def test_what_a_case_does_to_itself_is_its_record_and_costs_no_other(tmp_path: Path) -> None:
    names = ("crash", "fine", "hang", "unpredictable", "library")
    cases = [{"model": "tiny", "name": name, "rank": rank} for rank, name in enumerate(names, 1)]
    listed = expand({"device": "cpu", "models": {"tiny": TINY}, "deadline": "1s", "cases": cases}, "test")
    summary = run(listed, tmp_path / "out", targets=TARGETS, preload=())
    ends = {
        m.case: (m.outcome, m.failure.kind if m.failure else None)
        for _, m in record.scan(tmp_path / "out")[0]
    }
    assert ends == {
        "crash": ("error", "crash"),
        "fine": ("ok", None),
        "hang": ("error", "timeout"),
        "unpredictable": ("ok", None),
        "library": ("oom", "oom"),
    }
    assert (summary.progress.failed, summary.progress.out_of_memory) == (2, 1)
    unpredicted = next(m for _, m in record.scan(tmp_path / "out")[0] if m.case == "unpredictable")
    assert (unpredicted.prediction, unpredicted.warnings) == (None, ("no rule for this",))
    repeated = run(listed, tmp_path / "out", targets=TARGETS, preload=(), retry_errors=True, budget=0.2)
    assert repeated.progress.already == 3


def test_the_budget_ends_a_run_cleanly(tmp_path: Path) -> None:
    start = time.monotonic()
    summary = run(many(80, steps=100), tmp_path / "out", targets=TARGETS, preload=(), budget=4.0)
    assert time.monotonic() - start < 9
    assert summary.stopped == "the time budget is used up"
    assert 0 < summary.progress.missing < 80
    found, problems = record.scan(tmp_path / "out")
    assert len(found) == summary.progress.done
    assert problems == []


def test_a_record_that_cannot_be_written_stops_with_one_message(tmp_path: Path) -> None:
    cases = [{"model": "tiny", "name": "fine"}, {"model": "tiny", "name": "full", "rank": 2}]
    with pytest.raises(
        UsageError, match="full: cannot write it: the disk is full; 1 records of this run are on the disk"
    ):
        run(
            expand({"device": "cpu", "models": {"tiny": TINY}, "cases": cases}, "test"),
            tmp_path / "out",
            targets=TARGETS,
            preload=(),
        )
    assert len(record.scan(tmp_path / "out")[0]) == 1


def test_a_folder_that_cannot_be_used_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="expected a folder"):
        run(many(1), tmp_path / "file", targets=TARGETS, preload=())
    with pytest.raises(UsageError, match="no attribute 'nothing'"):
        run(many(1), tmp_path / "out", targets=Targets(describe="campaign_fakes:nothing"), preload=())


def test_records_of_an_archive_count_so_that_another_machine_goes_on_where_one_stopped(
    tmp_path: Path,
) -> None:
    archive = tmp_path / "all.jsonl"
    run(many(3), tmp_path / "first", targets=TARGETS, preload=(), archive=archive)
    second = run(many(5), tmp_path / "second", targets=TARGETS, preload=(), archive=archive)
    assert (second.progress.already, second.progress.done) == (3, 2)
    assert len(archive.read_text().splitlines()) == 5
    assert len(record.scan(tmp_path / "second")[0]) == 2


def test_where_the_parents_imports_have_touched_the_gpu_each_case_imports_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "used_before_the_fork.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    cases = expand({"device": "cuda", "models": {"tiny": TINY}, "cases": [{"model": "tiny"}]}, "test")
    monkeypatch.setattr(nvml, "look", nvml.Usage)
    with pytest.raises(UsageError, match="no CUDA GPU here"):
        run(cases, tmp_path / "out", targets=TARGETS, preload=("used_before_the_fork",))
    monkeypatch.setattr(nvml, "look", lambda: nvml.Usage(0))
    summary = run(cases, tmp_path / "out", targets=TARGETS, preload=("used_before_the_fork",))
    assert summary.progress.done == 1
    assert "each case imports for itself" in summary.notes[0]


def test_foreign_and_half_written_files_are_reported_and_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(many(2), out, targets=TARGETS, preload=())
    (out / "notes.json").write_text("{}")
    victim = record.scan(out)[0][0][0]
    victim.write_text(victim.read_text()[:100])
    summary = run(many(2), out, targets=TARGETS, preload=())
    assert summary.progress.done == 1
    assert len(summary.problems) == 2
    assert len(victim.read_text()) == 100
    assert (out / "notes.json").read_text() == "{}"


def test_what_a_killed_writer_left_is_swept_away_and_a_living_ones_is_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, living = (out / f".case-1234.json.{pid}.a_b1.tmp" for pid in (gone.pid, os.getpid()))
    left.write_text("{")
    living.write_text("{")
    run(many(1), out, targets=TARGETS, preload=())
    assert not left.exists()
    assert living.exists()


def test_a_campaign_searches_resumes_and_repeats_nothing(tmp_path: Path) -> None:
    cases = expand(
        {
            "device": "cuda",
            "models": {"tiny": TINY},
            "cases": [{"model": "tiny", "boundary": True}, {"model": "tiny"}],
        },
        "test",
    )
    out = tmp_path / "out"
    first = run(cases, out, targets=TARGETS, preload=())
    caps = {m.cap_bytes: m.outcome for _, m in record.scan(out)[0]}
    assert caps == {1000 * MIB: "ok", 998 * MIB: "oom", None: "ok"}
    assert (first.progress.done, first.progress.total, first.progress.missing) == (3, 3, 0)
    assert {m.case.rpartition(" ")[2] for _, m in record.scan(out)[0]} >= {"1000MiB", "998MiB"}
    assert run(cases, out, targets=TARGETS, preload=()).progress.done == 0
    next(path for path, m in record.scan(out)[0] if m.cap_bytes == 998 * MIB).unlink()
    again = run(cases, out, targets=TARGETS, preload=())
    assert (again.progress.done, again.progress.out_of_memory) == (1, 1)
