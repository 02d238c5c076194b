"""Many cases, one command: predicted on the other cores, measured one at a time, each in its own process, resumable by content.

Every record is on the disk, whole, before the next case starts; a kill at any moment loses at most the case that was running, and a restart
does only what is missing. Predictions are written before their measurement starts, under `raw/` beside the records.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planner.errors import UsageError
from profiler.archive import pack
from profiler.caselist import Case, CaseList
from profiler.files import make_folder, read_document
from profiler.isolate import Isolation, Report
from profiler.nursery import PRELOAD
from profiler.record import RAW, Failure, Measurement, file_name, identity_of, load, save_in, scan

PREDICTION_DEADLINE = 600.0
_LOCK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Targets:
    """The functions that run in the children, as `module:function`; tests hand in their own."""

    describe: str = "profiler.environment:describe"
    predict: str = "profiler.cases:predict"
    measure: str = "profiler.cases:measure"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a campaign stands, for whoever displays it. Times in seconds; `seconds_left` is None until a case has been timed."""

    total: int
    already: int  # found on the disk at the start
    done: int  # recorded by this run, whatever the outcome
    failed: int  # of these, outcome error
    out_of_memory: int  # of these, outcome oom
    predicted: int
    measuring: str | None = None
    predicting: tuple[str, ...] = ()
    seconds_left: float | None = None
    budget_left: float | None = None
    last: str | None = None

    @property
    def missing(self) -> int:
        return self.total - self.already - self.done


@dataclass(frozen=True, slots=True)
class Summary:
    """What a campaign left: the records of this run, files that were skipped with the reason, and whether it was cut short."""

    progress: Progress
    folder: Path
    records: tuple[Path, ...]
    problems: tuple[str, ...]
    stopped: str | None = None  # why it ended before every case was recorded


@dataclass
class _Job:
    """One case on its way: waiting -> predicting -> ready -> measuring -> gone."""

    case: Case
    identity: str
    state: str = "waiting"
    unpredicted: str | None = None  # why there is no prediction

    @property
    def stem(self) -> str:
        return file_name(self.case.name, self.identity).removesuffix(".json")


@dataclass
class _Run:
    isolation: Isolation
    folder: Path
    environment: Mapping[str, Any]
    targets: Targets
    jobs: list[_Job]
    started: float
    budget: float | None
    archive: Path | None
    active: dict[int, tuple[str, _Job]] = field(default_factory=dict)  # report id -> (kind, job)
    walls: list[float] = field(default_factory=list)
    records: list[Path] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    total: int = 0
    already: int = 0
    last: str | None = None

    def left(self) -> float | None:
        return None if self.budget is None else self.budget - (time.monotonic() - self.started)

    def progress(self) -> Progress:
        mean = sum(self.walls) / len(self.walls) if self.walls else None
        running = [job.case.name for kind, job in self.active.values() if kind == "predict"]
        measuring = next((job.case.name for kind, job in self.active.values() if kind == "measure"), None)
        return Progress(
            self.total, self.already, len(self.outcomes), self.outcomes.count("error"), self.outcomes.count("oom"),
            sum(job.state in ("ready", "measuring") for job in self.jobs), measuring, tuple(running),
            None if mean is None else mean * len(self.jobs), self.left(), self.last,
        )  # fmt: skip


def run(cases: CaseList, out: Path, *, budget: float | None = None, archive: Path | None = None, retry_errors: bool = False,
        listen: Callable[[Progress], None] = lambda progress: None, targets: Targets | None = None,
        preload: tuple[str, ...] = PRELOAD) -> Summary:  # fmt: skip
    """Measure every case that `out` has no record of. `budget` in seconds; what runs when it ends is stopped and stays missing.

    Raises UsageError where the folder cannot be written, another campaign writes into it, or the device is not there.
    """
    started = time.monotonic()
    make_folder(out)
    raw = make_folder(out / RAW)
    targets = targets or Targets()
    with _lock(raw / ".lock"), Isolation(preload) as isolation:
        found, problems = scan(out)
        environment = _environment(isolation, targets, cases.device)
        have = {measurement.identity for _, measurement in found if not (retry_errors and measurement.outcome == "error")}
        jobs = [_Job(case, identity_of(case.config, case.setup, case.cap_bytes, case.steps, environment)) for case in cases.cases]
        missing = [job for job in jobs if job.identity not in have]
        state = _Run(isolation, out, environment, targets, missing, started, budget, archive)
        state.total, state.already = len(jobs), len(jobs) - len(missing)
        if archive is not None:
            pack((measurement for _, measurement in found), archive)
        stopped = _loop(state, listen)
        return Summary(state.progress(), out, tuple(state.records), tuple(problems), stopped)


def _loop(state: _Run, listen: Callable[[Progress], None]) -> str | None:
    try:
        while state.jobs:
            left = state.left()
            if left is not None and left <= 0:
                return "the budget is spent"
            _start_jobs(state)
            listen(state.progress())
            if not state.active:
                return "the budget is spent"  # what is left takes longer than what is left of it
            report = state.isolation.wait(1.0 if left is None else max(0.01, min(1.0, left)))
            if report is not None:
                _finish(state, report)
        listen(state.progress())
        return None
    except KeyboardInterrupt:
        return "interrupted"


def _start_jobs(state: _Run) -> None:
    """Keep the other cores predicting and the device measuring; a case is measured only once its prediction is on the disk."""
    predictors = max(1, min(4, (os.cpu_count() or 2) - 1))
    for job in state.jobs:
        if sum(kind == "predict" for kind, _ in state.active.values()) >= predictors:
            break
        if job.state == "waiting":
            _predict(state, job)
    if any(kind == "measure" for kind, _ in state.active.values()):
        return
    ready = next((job for job in state.jobs if job.state == "ready"), None)
    if ready is not None and not _too_late(state):
        _measure(state, ready)


def _too_late(state: _Run) -> bool:
    left = state.left()
    return left is not None and bool(state.walls) and left < 0.5 * min(state.walls)


def _predict(state: _Run, job: _Job) -> None:
    path = state.folder / RAW / f"{job.stem}.prediction.json"
    with contextlib.suppress(UsageError):
        if read_document(path).get("for") == job.identity:
            job.state = "ready"
            return
    arguments = {"case": case_document(job.case), "identity": job.identity, "path": str(path), "environment": dict(state.environment)}
    number = state.isolation.submit(
        state.targets.predict, arguments, deadline=PREDICTION_DEADLINE, log=path.with_suffix(".log"),
        environment={"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},  # a prediction must not take memory of the device being measured
    )  # fmt: skip
    state.active[number] = ("predict", job)
    job.state = "predicting"


def _measure(state: _Run, job: _Job) -> None:
    raw = state.folder / RAW
    arguments = {"case": case_document(job.case), "folder": str(state.folder), "prediction": str(raw / f"{job.stem}.prediction.json"),
                 "unpredicted": job.unpredicted}  # fmt: skip
    number = state.isolation.submit(state.targets.measure, arguments, deadline=job.case.deadline, log=raw / f"{job.stem}.log")
    state.active[number] = ("measure", job)
    job.state = "measuring"


def _finish(state: _Run, report: Report) -> None:
    kind, job = state.active.pop(report.id, ("", None))
    if job is None:
        return
    if kind == "predict":
        if report.outcome != "ok":
            job.unpredicted = report.message
        job.state = "ready"
        return
    if report.outcome == "refused":  # the case itself records what it cannot run: this is a record that could not be written
        raise UsageError(f"{job.case.name}: {report.message}; {len(state.records)} records of this run are on the disk")
    path = Path(report.result) if report.outcome == "ok" else save_in(_failed(job, report, state.environment), state.folder)
    measurement = load(path)
    state.jobs.remove(job)
    state.walls.append(report.seconds)
    state.records.append(path)
    state.outcomes.append(measurement.outcome)
    state.last = f"{job.case.name}: {measurement.outcome}" + (f" ({measurement.failure.message[:120]})" if measurement.failure else "")
    if state.archive is not None:
        pack([measurement], state.archive)


def _failed(job: _Job, report: Report, environment: Mapping[str, Any]) -> Measurement:
    """The record of a case whose process gave none."""
    last_line = next((line for line in reversed(report.log_tail.splitlines()) if line.strip()), "")
    message = f"{report.message}: {last_line}" if last_line and report.outcome != "exception" else report.message
    return Measurement(
        case=job.case.name, model={"name": job.case.model, "config": dict(job.case.config)}, setup=job.case.setup, environment=environment,
        outcome="error", steps=job.case.steps, cap_bytes=job.case.cap_bytes, failure=Failure(report.outcome, message[:900]),
        recorded_at=now(), wall_seconds=round(report.seconds, 2),
    )  # fmt: skip


def _environment(isolation: Isolation, targets: Targets, device: str) -> Mapping[str, Any]:
    report = isolation.run(targets.describe, [device], deadline=120.0)
    if report.outcome != "ok":
        raise UsageError(report.message)
    return dict(report.result)


def case_document(case: Case) -> dict[str, Any]:
    """A case as JSON, for the child that runs it."""
    return {**{f.name: getattr(case, f.name) for f in dataclasses.fields(case)}, "setup": case.setup.to_document()}


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One campaign a folder. The lock goes with the process that holds it, so a kill leaves none behind."""
    import fcntl

    with open(path, "w", encoding="utf-8") as handle:
        end = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > end:
                    raise UsageError(f"another campaign is writing into {path.parent.parent}: wait for it, or use another folder") from None
                time.sleep(0.05)
        yield
