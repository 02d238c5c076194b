"""Many cases, one command: predicted on the other cores, measured one at a time, each in its own process,
resumable by content.

Every record is on the disk, whole, before the next case starts; a kill at any moment loses at most the case
that was running, and a restart does only what is missing. Predictions are written before their measurement
starts, under `raw/` beside the records.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memplan.planner.tables.errors import UsageError
from memplan.profiler import nvml
from memplan.profiler.archive import pack, read
from memplan.profiler.case_matrix import CaseList
from memplan.profiler.files import make_folder, read_document, sweep
from memplan.profiler.fork_server import PRELOAD, PRELOAD_CPU
from memplan.profiler.isolate import Isolation, Report
from memplan.profiler.jobs import Job, case_document, failed, is_done, job_of
from memplan.profiler.record import RAW, load, save_in, scan

PREDICTION_DEADLINE = 600.0
HIDDEN_GPU = {"CUDA_VISIBLE_DEVICES": ""}
_LOCK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Targets:
    """The functions that run in the children, as `module:function`; tests hand in their own."""

    describe: str = "memplan.profiler.environment:describe"
    predict: str = "memplan.profiler.cases:predict"
    measure: str = "memplan.profiler.cases:measure"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a campaign stands, for whoever displays it. Times in seconds; `seconds_left` is None until a case
    has been timed.
    """

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
        """How many cases have no record yet."""
        return self.total - self.already - self.done


@dataclass(frozen=True, slots=True)
class Summary:
    """What a campaign left: the records of this run, files that were skipped with the reason, and whether it
    was cut short.
    """

    progress: Progress
    folder: Path
    records: tuple[Path, ...]
    problems: tuple[str, ...]
    stopped: str | None = None  # why it ended before every case was recorded
    notes: tuple[str, ...] = ()


@dataclass
class _Run:
    isolation: Isolation
    folder: Path
    environment: Mapping[str, Any]
    targets: Targets
    jobs: list[Job]
    started: float
    budget: float | None
    archive: Path | None
    active: dict[int, tuple[str, Job]] = field(default_factory=dict)  # report id -> (kind, job)
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
            self.total,
            self.already,
            len(self.outcomes),
            self.outcomes.count("error"),
            self.outcomes.count("oom"),
            sum(job.state in ("ready", "measuring") for job in self.jobs),
            measuring,
            tuple(running),
            None if mean is None else mean * len(self.jobs),
            self.left(),
            self.last,
        )


def run(
    cases: CaseList,
    out: Path,
    *,
    budget: float | None = None,
    archive: Path | None = None,
    retry_errors: bool = False,
    listen: Callable[[Progress], None] = lambda progress: None,
    targets: Targets | None = None,
    preload: tuple[str, ...] = PRELOAD,
    server: Callable[[Sequence[str]], Isolation] | None = None,
) -> Summary:
    """Measure every case that `out` has no record of. `budget` in seconds; what runs when it ends is stopped
    and stays missing. `server` makes the process that cases are forked from, where it is not one of this
    interpreter.

    Raises UsageError where the folder cannot be written, another campaign writes into it, or the device is
    not there.
    """
    started = time.monotonic()
    make_folder(out)
    raw = make_folder(out / RAW)
    targets = targets or Targets()
    with _lock(raw / ".lock"), contextlib.ExitStack() as stack:
        for folder in (out, raw):
            sweep(folder)
        isolation, environment, notes = _opened(stack, targets, cases.device, preload, server)
        found, problems = scan(out)
        known = [measurement for _, measurement in found] + (read(archive) if archive is not None else [])
        kept = [measurement for measurement in known if not (retry_errors and measurement.outcome == "error")]
        jobs = [job_of(case, environment, kept) for case in cases.cases]
        missing = [job for job in jobs if not is_done(job, environment, kept)]
        state = _Run(isolation, out, environment, targets, missing, started, budget, archive)
        state.total, state.already = len(jobs), len(jobs) - len(missing)
        if archive is not None:
            pack(known, archive)
        stopped = _loop(state, listen)
        return Summary(state.progress(), out, tuple(state.records), tuple(problems), stopped, tuple(notes))


def _loop(state: _Run, listen: Callable[[Progress], None]) -> str | None:
    try:
        while state.jobs:
            left = state.left()
            if left is not None and left <= 0:
                return "the time budget is used up"
            _start_jobs(state)
            listen(state.progress())
            if not state.active:
                return "the time budget is used up"  # what is left takes longer than what is left of it
            report = state.isolation.wait(1.0 if left is None else max(0.01, min(1.0, left)))
            if report is not None:
                _finish(state, report)
        listen(state.progress())
        return None
    except KeyboardInterrupt:
        return "interrupted"


def _start_jobs(state: _Run) -> None:
    """Keep the other cores predicting and the device measuring; a case is measured only once its prediction
    is on the disk.
    """
    predictors = max(1, min(6, (os.cpu_count() or 2) - 2))
    for job in state.jobs:
        if sum(kind == "predict" for kind, _ in state.active.values()) >= predictors:
            break
        if job.state == "waiting":
            _predict(state, job)
    if any(kind == "measure" for kind, _ in state.active.values()):
        return
    for ready in [job for job in state.jobs if job.state == "ready"]:
        if ready.case.boundary and not ready.aim(state.folder, state.environment):
            state.jobs.remove(ready)
            state.total -= 1  # a search counts by its probes
            continue
        if not _too_late(state):
            _measure(state, ready)
        return


def _too_late(state: _Run) -> bool:
    left = state.left()
    return left is not None and bool(state.walls) and left < 0.5 * min(state.walls)


def _predict(state: _Run, job: Job) -> None:
    path = job.prediction(state.folder)
    with contextlib.suppress(UsageError):
        if read_document(path).get("for") == job.plain:
            job.state = "ready"
            return
    arguments = {
        "case": case_document(job.case),
        "identity": job.plain,
        "path": str(path),
        "environment": dict(state.environment),
    }
    number = state.isolation.submit(
        state.targets.predict,
        arguments,
        deadline=PREDICTION_DEADLINE,
        log=path.with_suffix(".log"),
        environment=HIDDEN_GPU,  # a prediction must not take memory of the device being measured
    )
    state.active[number] = ("predict", job)
    job.state = "predicting"


def _measure(state: _Run, job: Job) -> None:
    raw = state.folder / RAW
    arguments = {
        "case": case_document(job.case),
        "folder": str(state.folder),
        "prediction": str(job.prediction(state.folder)),
        "unpredicted": job.unpredicted,
    }
    number = state.isolation.submit(
        state.targets.measure, arguments, deadline=job.case.deadline, log=raw / f"{job.stem}.log"
    )
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
    if (
        report.outcome == "refused"
    ):  # the case itself records what it cannot run: this is a record that could not be written
        raise UsageError(
            f"{job.case.name}: {report.message}; {len(state.records)} records of this run are on the disk"
        )
    path = (
        Path(report.result)
        if report.outcome == "ok"
        else save_in(failed(job, report, state.environment), state.folder)
    )
    measurement = load(path)
    if job.goes_on(measurement):
        state.total += 1
    else:
        state.jobs.remove(job)
    state.walls.append(report.seconds)
    state.records.append(path)
    state.outcomes.append(measurement.outcome)
    state.last = f"{job.case.name}: {measurement.outcome}" + (
        f" ({measurement.failure.message[:120]})" if measurement.failure else ""
    )
    if state.archive is not None:
        pack([measurement], state.archive)


def _opened(
    stack: contextlib.ExitStack,
    targets: Targets,
    device: str,
    preload: tuple[str, ...],
    server: Callable[[Sequence[str]], Isolation] | None,
) -> tuple[Isolation, Mapping[str, Any], list[str]]:
    """The process to fork from, what the device is, and notes. Where a GPU is there but a forked child cannot
    use it, nothing is imported before the fork: some library that the parent imported has touched CUDA.
    """
    cpu = device == "cpu"
    names = PRELOAD_CPU if cpu and preload is PRELOAD else preload
    made = Isolation(names, HIDDEN_GPU if cpu else None) if server is None else server(names)
    isolation = stack.enter_context(made)
    report = isolation.run(targets.describe, [device], deadline=120.0)
    notes = []
    if report.outcome != "ok" and names and device == "cuda" and nvml.look().used is not None:
        isolation.close()
        again = stack.enter_context(Isolation(()))
        second = again.run(targets.describe, [device], deadline=120.0)
        if second.outcome == "ok":
            notes.append(
                f"the GPU cannot be used in a process forked after its imports ({report.message}): each "
                "case imports for itself"
            )
            isolation, report = again, second
    if report.outcome != "ok":
        raise UsageError(report.message)
    return isolation, dict(report.result), notes


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
                    raise UsageError(
                        f"another campaign is writing into {path.parent.parent}: wait for it, or use "
                        "another folder"
                    ) from None
                time.sleep(0.05)
        yield
