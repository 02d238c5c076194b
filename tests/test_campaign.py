"""Campaigns: what a file says, what a run leaves, and that no kill, crash or full disk costs a finished record."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from planner.errors import UsageError
from profiler import caselist, nvml, record
from profiler.campaign import Progress, Targets, run
from profiler.caselist import CaseList, expand, parse_duration

ROOT = Path(__file__).parents[1]
MIB = 2**20
TINY = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64,
}  # fmt: skip

FAKES = """
    import json, os, sys, time
    from pathlib import Path
    from planner.errors import UsageError
    from profiler.record import MeasuredMoment, MeasuredPeak, Measurement, read_setup, save_in

    ENVIRONMENT = {"device": "cpu", "gpu": None, "versions": {"torch": "0"}, "total_bytes": 2**33}
    MIB = 2**20

    def describe(device):
        if device == "cuda" and "used_before_the_fork" in sys.modules:
            raise UsageError("no CUDA GPU here (torch sees none)")
        return ENVIRONMENT

    def predict(case, identity, path, environment):
        if case["name"] == "unpredictable":
            raise UsageError("no rule for this")
        time.sleep(case["steps"] / 1000)
        Path(path).write_text(json.dumps({"for": identity, "prediction": PREDICTION}))

    TRUTH = 1000 * MIB
    PREDICTION = {"engine": "trace", "smallest_capacity_bytes": 1600 * MIB, "peak": {"context_bytes": 600 * MIB}}

    def measure(case, folder, prediction, unpredicted=None):
        if os.environ.get("MEMPLAN_TEST_PIDS"):
            (Path(os.environ["MEMPLAN_TEST_PIDS"]) / str(os.getpid())).touch()
        before = None if unpredicted else json.loads(Path(prediction).read_text())["prediction"]
        if case["name"] == "crash":
            os.abort()
        if case["name"] == "hang":
            time.sleep(60)
        if case["name"] == "library":
            print("Error out of memory at line 90 in file pythonInterface.cpp")
            os._exit(1)
        if case["name"] == "full":
            raise UsageError("cannot write it: the disk is full")
        time.sleep(case["steps"] / 1000)
        peak = MeasuredPeak("load", 1)
        refused = case["cap_bytes"] is not None and case["cap_bytes"] < TRUTH
        result = Measurement(case=case["name"], model={"name": case["model"], "config": case["config"]}, setup=read_setup(case["setup"]),
                             environment=ENVIRONMENT,
                             outcome="oom" if refused else "ok", cap_bytes=case["cap_bytes"], steps=case["steps"], peak=peak,
                             step_peak=peak, prediction=before,
                             moments=(MeasuredMoment("load", 1),), recorded_at=os.urandom(8).hex(),
                             warnings=(unpredicted,) if unpredicted else ())
        return str(save_in(result, Path(folder)))
"""
TARGETS = Targets("campaign_fakes:describe", "campaign_fakes:predict", "campaign_fakes:measure")


def many(count: int, steps: int = 1, **named: Any) -> CaseList:
    ranks = {"rank": list(range(1, count + 1))}
    return expand({"device": "cpu", "models": {"tiny": TINY}, "steps": steps, "cases": [{"model": "tiny", "grid": ranks, **named}]}, "test")


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "fakes"
    folder.mkdir()
    (folder / "campaign_fakes.py").write_text(textwrap.dedent(FAKES))
    monkeypatch.syspath_prepend(str(folder))
    return folder


# -- the file ----------------------------------------------------------------------------------------------------------------------------


def test_grids_multiply_merge_mappings_and_skip() -> None:
    document = {
        "device": "cpu",
        "models": {"a": TINY, "b": {**TINY, "hidden_size": 128}},
        "defaults": {"recipe": "raw"},
        "cases": [
            {
                "grid": {
                    "model": ["a", "b"],
                    "method": ["full", "lora"],
                    "shape": [{"micro_batch": 1}, {"micro_batch": 4, "sequence_length": 32}],
                },
                "skip": [{"model": "b", "method": "full"}],
            },
            {"model": "a", "method": "full"},  # the same as the grid's first: once
            {"model": "a", "method": "full", "cap": "1GiB", "name": "capped"},
        ],
    }
    cases = expand(document, "file").cases
    assert [(c.model, c.setup.method, c.setup.micro_batch, c.setup.sequence_length, c.cap_bytes) for c in cases] == [
        ("a", "full", 1, 2048, None), ("a", "full", 4, 32, None), ("a", "lora", 1, 2048, None), ("a", "lora", 4, 32, None),
        ("b", "lora", 1, 2048, None), ("b", "lora", 4, 32, None), ("a", "full", 1, 2048, 2**30),
    ]  # fmt: skip
    assert {c.setup.recipe for c in cases} == {"raw"}
    assert {c.setup.load for c in cases} == {"random"}
    assert cases[-1].name == "capped"
    assert len({c.name for c in cases}) == len(cases)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cases": []}, "cases is missing or empty"),
        ({"case": []}, "unknown key 'case': did you mean cases"),
        ({"cases": [{"model": "tiny", "metod": "lora"}]}, "case 1: unknown key 'metod': did you mean method"),
        ({"cases": [{"method": "lora"}]}, "case 1: model is None, expected a name"),
        ({"cases": ["tiny"]}, "case 1: 'tiny' is no mapping"),
        ({"cases": [{"model": "tiny", "rank": "many"}]}, "case 1: rank "),
        ({"cases": [{"model": "tiny", "cap": "much"}]}, "case 1: 'much' is not a size"),
        ({"cases": [{"model": "tiny", "steps": 0}]}, "case 1: steps is 0, expected a whole number"),
        ({"cases": [{"model": "tiny", "deadline": "soon"}]}, "case 1: 'soon' is not a duration"),
        ({"cases": [{"model": "tiny", "grid": {"rank": 8}}]}, "case 1: grid.rank is 8, expected a list"),
        ({"cases": [{"model": "tiny", "grid": {"ranks": [8]}}]}, "case 1: unknown grid axis 'ranks': did you mean rank"),
        ({"cases": [{"model": "tiny", "grid": {"x": [{"ranks": 8}]}}]}, "case 1: unknown key 'ranks'"),
        ({"cases": [{"model": "tiny", "skip": {"rank": 8}}]}, "case 1: skip is"),
        ({"defaults": {"cap": "1GiB"}}, "unknown setting in defaults 'cap'"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"models": {"tiny": 3}}, "models.tiny is 3"),
        ({"cases": [{"model": "tiny", "boundary": True}]}, "case 1: boundary looks for a cap of the CUDA allocator"),
        ({"device": "cuda", "cases": [{"model": "tiny", "boundary": True, "cap": "1GiB"}]}, "case 1: boundary looks for a cap"),
        ({"cases": [{"model": "tiny", "boundary": "yes"}]}, "case 1: boundary is 'yes', expected true or false"),
        ({"schema": "memplan.campaign/2"}, "expected memplan.campaign/1"),
    ],
)
def test_a_wrong_file_is_one_message(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        expand({"device": "cpu", "models": {"tiny": TINY}, "cases": [{"model": "tiny"}], **change}, "test")
    assert says in str(caught.value)


def test_a_file_that_is_missing_or_no_yaml_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        caselist.read(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("cases: [\n  {model: a")
    with pytest.raises(UsageError, match="is not YAML"):
        caselist.read(broken)
    broken.write_text("- 1")
    with pytest.raises(UsageError, match="a campaign is a mapping"):
        caselist.read(broken)


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "campaigns").glob("*.yaml")))
def test_the_shipped_campaigns_resolve(name: str) -> None:
    cases = caselist.read(ROOT / "campaigns" / name).cases
    assert len(cases) >= 12
    assert len({record.slug(case.name) for case in cases}) == len(cases)


def test_durations() -> None:
    assert [parse_duration(text) for text in ("25m", "570s", "1.5h")] == [1500, 570, 5400]
    for wrong in ("25", "", "m", "-3s", "0s", "1e9h"):
        with pytest.raises(UsageError, match="is not a duration"):
            parse_duration(wrong)


# -- a run -------------------------------------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_record_a_case_and_a_second_run_does_nothing(fakes: Path, tmp_path: Path) -> None:
    out, archive, seen = tmp_path / "out", tmp_path / "all.jsonl", list[Progress]()
    first = run(many(4), out, targets=TARGETS, preload=(), archive=archive, listen=seen.append)
    assert (first.progress.done, first.progress.failed, first.stopped) == (4, 0, None)
    found, problems = record.scan(out)
    assert len(found) == 4
    assert problems == []
    assert all(measurement.prediction and measurement.prediction["engine"] == "trace" for _, measurement in found)
    assert len(archive.read_text().splitlines()) == 4
    assert seen[-1].missing == 0
    assert any(progress.measuring for progress in seen)
    before = {path: path.read_bytes() for path, _ in found}
    again = run(many(6), out, targets=TARGETS, preload=(), archive=archive)
    assert (again.progress.already, again.progress.done) == (4, 2)
    assert {path: path.read_bytes() for path in before} == before
    assert len(archive.read_text().splitlines()) == 6


def test_what_a_case_does_to_itself_is_its_record_and_costs_no_other(fakes: Path, tmp_path: Path) -> None:
    names = ("crash", "fine", "hang", "unpredictable", "library")
    cases = [{"model": "tiny", "name": name, "rank": rank} for rank, name in enumerate(names, 1)]
    listed = expand({"device": "cpu", "models": {"tiny": TINY}, "deadline": "1s", "cases": cases}, "test")
    summary = run(listed, tmp_path / "out", targets=TARGETS, preload=())
    ends = {m.case: (m.outcome, m.failure.kind if m.failure else None) for _, m in record.scan(tmp_path / "out")[0]}
    assert ends == {"crash": ("error", "crash"), "fine": ("ok", None), "hang": ("error", "timeout"), "unpredictable": ("ok", None),
                    "library": ("oom", "oom")}  # fmt: skip
    assert (summary.progress.failed, summary.progress.out_of_memory) == (2, 1)
    unpredicted = next(m for _, m in record.scan(tmp_path / "out")[0] if m.case == "unpredictable")
    assert (unpredicted.prediction, unpredicted.warnings) == (None, ("no rule for this",))
    repeated = run(listed, tmp_path / "out", targets=TARGETS, preload=(), retry_errors=True, budget=0.2)
    assert repeated.progress.already == 3


def test_the_budget_ends_a_run_cleanly(fakes: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    summary = run(many(80, steps=100), tmp_path / "out", targets=TARGETS, preload=(), budget=4.0)
    assert time.monotonic() - start < 9
    assert summary.stopped == "the budget is spent"
    assert 0 < summary.progress.missing < 80
    found, problems = record.scan(tmp_path / "out")
    assert len(found) == summary.progress.done
    assert problems == []


def test_a_record_that_cannot_be_written_stops_with_one_message(fakes: Path, tmp_path: Path) -> None:
    cases = [{"model": "tiny", "name": "fine"}, {"model": "tiny", "name": "full", "rank": 2}]
    with pytest.raises(UsageError, match="full: cannot write it: the disk is full; 1 records of this run are on the disk"):
        run(expand({"device": "cpu", "models": {"tiny": TINY}, "cases": cases}, "test"), tmp_path / "out", targets=TARGETS, preload=())
    assert len(record.scan(tmp_path / "out")[0]) == 1


def test_a_folder_that_cannot_be_used_is_one_message(fakes: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="expected a folder"):
        run(many(1), tmp_path / "file", targets=TARGETS, preload=())
    with pytest.raises(UsageError, match="no attribute 'nothing'"):
        run(many(1), tmp_path / "out", targets=Targets(describe="campaign_fakes:nothing"), preload=())


def test_records_of_an_archive_count_so_that_another_machine_goes_on_where_one_stopped(fakes: Path, tmp_path: Path) -> None:
    archive = tmp_path / "all.jsonl"
    run(many(3), tmp_path / "first", targets=TARGETS, preload=(), archive=archive)
    second = run(many(5), tmp_path / "second", targets=TARGETS, preload=(), archive=archive)
    assert (second.progress.already, second.progress.done) == (3, 2)
    assert len(archive.read_text().splitlines()) == 5
    assert len(record.scan(tmp_path / "second")[0]) == 2


def test_where_the_parents_imports_have_touched_the_gpu_each_case_imports_for_itself(fakes: Path, tmp_path: Path,
                                                                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    (fakes / "used_before_the_fork.py").write_text("")
    cases = expand({"device": "cuda", "models": {"tiny": TINY}, "cases": [{"model": "tiny"}]}, "test")
    monkeypatch.setattr(nvml, "look", nvml.Usage)
    with pytest.raises(UsageError, match="no CUDA GPU here"):
        run(cases, tmp_path / "out", targets=TARGETS, preload=("used_before_the_fork",))
    monkeypatch.setattr(nvml, "look", lambda: nvml.Usage(0))
    summary = run(cases, tmp_path / "out", targets=TARGETS, preload=("used_before_the_fork",))
    assert summary.progress.done == 1
    assert "each case imports for itself" in summary.notes[0]


# -- the smallest cap that survives ------------------------------------------------------------------------------------------------------


def test_a_campaign_searches_resumes_and_repeats_nothing(fakes: Path, tmp_path: Path) -> None:
    cases = expand({"device": "cuda", "models": {"tiny": TINY}, "cases": [{"model": "tiny", "boundary": True}, {"model": "tiny"}]}, "test")
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


def test_foreign_and_half_written_files_are_reported_and_left_alone(fakes: Path, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_a_campaign_ends_its_children_first(fakes: Path, tmp_path: Path, number: int) -> None:
    """`timeout` and batch systems send SIGTERM: the summary is printed, the exit code is Ctrl-C's, no process and no torn file stays."""
    file, out, pids = tmp_path / "slow.yaml", tmp_path / "out", tmp_path / "pids"
    pids.mkdir()
    grid = [{"model": "tiny", "grid": {"rank": list(range(1, 20))}}]
    file.write_text(json.dumps({"device": "cpu", "models": {"tiny": TINY}, "steps": 400, "cases": grid}))
    script = textwrap.dedent(f"""
        import sys; sys.path[:] = {sys.path!r}
        from profiler import campaign
        from memplan.cli.main import run
        campaign.Targets.__init__.__defaults__ = ("campaign_fakes:describe", "campaign_fakes:predict", "campaign_fakes:measure")
        campaign.run.__kwdefaults__["preload"] = ()
        sys.exit(run(["campaign", {str(file)!r}, "--out", {str(out)!r}]))
    """)
    around = {**os.environ, "MEMPLAN_TEST_PIDS": str(pids)}
    client = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=around)
    end = time.monotonic() + 30
    while not list(out.glob("*.json")) and time.monotonic() < end:
        time.sleep(0.05)
    client.send_signal(number)
    said, errors = client.communicate(timeout=30)
    assert client.returncode == 130, errors
    assert "stopped: interrupted" in said
    found, problems = record.scan(out)
    assert found
    assert problems == []
    started = [int(path.name) for path in pids.iterdir()]
    assert started
    for pid in started:
        assert not _is_running(pid)


def _is_running(pid: int) -> bool:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.05)
    return True


CLIENT = """
    import sys; sys.path[:] = {path!r}
    from pathlib import Path
    from profiler import campaign, caselist
    {cases}
    campaign.run(cases, Path({out!r}), {options})
"""


def _killed_ten_times(script: str, out: Path, pause: tuple[float, float]) -> int:
    """Start the client, kill it after a random pause, ten times; how often a record was already there afterwards."""
    chance = random.Random(7)
    seen: dict[Path, bytes] = {}
    kills = 0
    for _ in range(10):
        client = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(*pause))
        if client.poll() is None:
            os.kill(client.pid, signal.SIGKILL)
            kills += 1
        client.wait()
        for path in out.glob("*.json"):
            content = path.read_bytes()
            json.loads(content)
            assert seen.setdefault(path, content) == content
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600)
    for path, content in seen.items():
        assert path.read_bytes() == content, "measured twice"
    return kills


def _check_twelve(out: Path) -> None:
    found, problems = record.scan(out)
    assert problems == []
    assert len(found) == 12
    assert len({measurement.identity for _, measurement in found}) == 12
    assert not [path for path in out.iterdir() if path.suffix == ".tmp"]


def test_twelve_cases_killed_ten_times_end_as_twelve_records(fakes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = tmp_path / "twelve.yaml"
    grid = [{"model": "tiny", "grid": {"rank": list(range(1, 13))}}]
    file.write_text(json.dumps({"device": "cpu", "models": {"tiny": TINY}, "steps": 150, "cases": grid}))
    targets = "targets=campaign.Targets('campaign_fakes:describe', 'campaign_fakes:predict', 'campaign_fakes:measure'), preload=()"
    cases = f"cases = caselist.read(Path({str(file)!r}))"
    script = textwrap.dedent(CLIENT).format(path=sys.path, cases=cases, out=str(out), options=targets)
    kills = _killed_ten_times(script, out, (0.3, 1.2))
    assert kills >= 5
    _check_twelve(out)


@pytest.mark.slow
@pytest.mark.trace
def test_twelve_real_cases_killed_ten_times_end_as_twelve_records(tmp_path: Path) -> None:
    out = tmp_path / "out"
    cases = f"cases = caselist.read(Path({str(ROOT / 'campaigns' / 'cpu.yaml')!r}))"
    script = textwrap.dedent(CLIENT).format(path=sys.path, cases=cases, out=str(out), options="")
    kills = _killed_ten_times(script, out, (4.0, 25.0))
    assert kills >= 3
    _check_twelve(out)
    assert {measurement.outcome for _, measurement in record.scan(out)[0]} == {"ok"}
