"""One case on its way through a campaign: what it is known by, where a search for a boundary aims next, and
its record if it gave none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memplan.planner.tables.errors import UsageError
from memplan.profiler.case_matrix import Case
from memplan.profiler.files import read_document
from memplan.profiler.isolate import Report
from memplan.profiler.naming import file_name, identity_of
from memplan.profiler.oom_threshold import next_cap, predicted_cap
from memplan.profiler.record import RAW, Failure, Measurement


@dataclass
class Job:
    """One case on its way: waiting -> predicting -> ready -> measuring -> gone. A search for a boundary is
    ready again for its next cap.
    """

    case: Case
    identity: str
    plain: str  # the identity without a cap: predictions and the probes of one search go by it
    stem: str  # of the prediction's files
    survived: dict[int, bool] = field(
        default_factory=dict
    )  # a search's probes: cap -> whether the run got through
    state: str = "waiting"
    unpredicted: str | None = None  # why there is no prediction

    def prediction(self, folder: Path) -> Path:
        """Where its prediction lies in a campaign's folder."""
        return folder / RAW / f"{self.stem}.prediction.json"

    def aim(self, folder: Path, environment: Mapping[str, Any]) -> bool:
        """Give a search its next cap; False where it has ended, or where no prediction says where to
        begin.
        """
        with contextlib.suppress(UsageError):
            start = predicted_cap(read_document(self.prediction(folder)).get("prediction"))
            cap = None if start is None else next_cap(start, self.survived, int(environment["total_bytes"]))
            if cap is not None:
                name = f"{self.case.name.partition(' boundary')[0]} boundary {cap // 2**20}MiB"
                self.case = dataclasses.replace(self.case, cap_bytes=cap, name=name)
                self.identity = identity_of(
                    self.case.config, self.case.setup, cap, self.case.steps, environment
                )
                return True
        return False

    def goes_on(self, measurement: Measurement) -> bool:
        """Note what a measurement showed; whether there is more to measure (a search, unless its run failed
        for another reason).
        """
        if not self.case.boundary or measurement.outcome == "error" or measurement.cap_bytes is None:
            return False
        self.survived[measurement.cap_bytes] = measurement.outcome == "ok"
        self.state = "ready"
        return True


def job_of(case: Case, environment: Mapping[str, Any], known: Sequence[Measurement]) -> Job:
    """A case as a job; a search begins with the probes that `known` records hold."""
    own = identity_of(case.config, case.setup, case.cap_bytes, case.steps, environment)
    plain = identity_of(case.config, case.setup, None, case.steps, environment)
    job = Job(case, own, plain, file_name(case.name, own).removesuffix(".json"))
    for m in known if case.boundary else ():
        if m.cap_bytes is not None and m.outcome != "error" and plain == m.with_(cap_bytes=None).identity:
            job.survived[m.cap_bytes] = m.outcome == "ok"
    return job


def is_done(job: Job, environment: Mapping[str, Any], known: Sequence[Measurement]) -> bool:
    """Whether records hold all that a job would measure; a search's first cap is that of the prediction in
    its records.
    """
    if not job.case.boundary:
        return any(m.identity == job.identity for m in known)
    own = (
        m
        for m in known
        if m.cap_bytes in job.survived and m.prediction and m.with_(cap_bytes=None).identity == job.plain
    )
    start = predicted_cap(next((m.prediction for m in own), None))
    return start is not None and next_cap(start, job.survived, int(environment["total_bytes"])) is None


def failed(job: Job, report: Report, environment: Mapping[str, Any]) -> Measurement:
    """The record of a case whose process gave none."""
    last_line = next((line for line in reversed(report.log_tail.splitlines()) if line.strip()), "")
    message = (
        f"{report.message}: {last_line}" if last_line and report.outcome != "exception" else report.message
    )
    exhausted = (
        report.outcome in ("exit", "crash") and "out of memory" in report.log_tail.lower()
    )  # a library's own CUDA code ends so
    return Measurement(
        case=job.case.name,
        model={"name": job.case.model, "config": dict(job.case.config)},
        setup=job.case.setup,
        environment=environment,
        outcome="oom" if exhausted else "error",
        steps=job.case.steps,
        cap_bytes=job.case.cap_bytes,
        failure=Failure("oom" if exhausted else report.outcome, message[:900]),
        recorded_at=now(),
        wall_seconds=round(report.seconds, 2),
    )


def case_document(case: Case) -> dict[str, Any]:
    """A case as JSON, for the child that runs it."""
    return {
        **{f.name: getattr(case, f.name) for f in dataclasses.fields(case)},
        "setup": case.setup.to_document(),
    }


def now() -> str:
    """The current time in UTC, ISO 8601 to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
