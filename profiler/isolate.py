"""Each case in its own process, with a deadline: out of memory, a crash, a kill or a hang is a report about
that case alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from memplan.planner.tables.errors import UsageError
from memplan.profiler.fork_server import PRELOAD

_START = (
    "import json, sys; path = json.loads(sys.argv[1]); "
    "sys.path[:] = path if sys.argv[4] == 'ours' else [*sys.path, *path]; "
    "from memplan.profiler.fork_server import main; main(json.loads(sys.argv[2]), int(sys.argv[3]))"
)


@dataclass(frozen=True, slots=True)
class Report:
    """How one job ended. `outcome`: ok, refused (a user's mistake), exception, crash (a signal), exit (no
    answer), timeout.
    """

    id: int
    outcome: str
    result: Any = None
    message: str = ""
    seconds: float = 0.0
    log_tail: str = ""


class Isolation:
    """A nursery and the jobs given to it. Use as a context manager; leaving it ends every child.

    `preload` are the modules that the nursery imports before the first fork, `environment` is added to its
    own. Jobs name their function as `module:function`, found on this process's sys.path; arguments and
    results are JSON. `python` is another interpreter of the same version: its own packages come first, this
    process's after them.
    """

    def __init__(
        self,
        preload: Sequence[str] = PRELOAD,
        environment: Mapping[str, str] | None = None,
        python: Path | None = None,
    ) -> None:
        self._preload, self._environment, self._python = list(preload), dict(environment or {}), python
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._next = 1
        self.pending: dict[int, dict[str, Any]] = {}
        self._lost: list[Report] = []

    def __enter__(self) -> Isolation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(
        self,
        target: str,
        arguments: Mapping[str, Any] | Sequence[Any] = (),
        *,
        deadline: float | None = None,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Start a job in a process of its own; its id. `deadline` in seconds, `environment` is added to the
        child's before it runs.
        """
        arguments = dict(arguments) if isinstance(arguments, Mapping) else list(arguments)
        job = self._next
        self._next += 1
        request = {
            "id": job,
            "target": target,
            "arguments": arguments,
            "deadline": deadline,
            "log": str(log) if log else None,
            "environment": dict(environment or {}),
        }
        self.pending[job] = request
        try:
            self._send(request)
        except BrokenPipeError:
            self._nursery_lost()
        return job

    def cancel(self, job: int) -> None:
        """Kill a job; its report (a crash) still comes."""
        if job in self.pending:
            with contextlib.suppress(BrokenPipeError):
                self._send({"id": job, "cancel": True})

    def wait(self, seconds: float | None = None) -> Report | None:
        """The next report, or None after `seconds`. Raises UsageError where the nursery cannot start at
        all.
        """
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            if self._lost:
                return self._lost.pop(0)
            line = self._line(end)
            if line is None:
                if self._lost:
                    continue
                return None
            answer = json.loads(line)
            if "outcome" in answer and self.pending.pop(answer["id"], None) is not None:
                return Report(**{key: answer[key] for key in Report.__dataclass_fields__ if key in answer})

    def run(self, target: str, arguments: Mapping[str, Any] | Sequence[Any] = (), **options: Any) -> Report:
        """Submit one job and wait for it, with no other pending."""
        job = self.submit(target, arguments, **options)
        while True:
            report = self.wait()
            if report is not None and report.id == job:
                return report

    def close(self) -> None:
        """End the nursery and every child."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(BrokenPipeError):
            assert process.stdin is not None
            process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
        self.pending.clear()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            path = [os.path.abspath(entry) for entry in sys.path]
            command = [
                str(self._python or sys.executable),
                "-c",
                _START,
                json.dumps(path),
                json.dumps(self._preload),
                str(os.getpid()),
                "theirs" if self._python else "ours",
            ]
            around = {**os.environ, **self._environment}
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env=around
            )
            self._buffer = b""
        return self._process

    def _send(self, request: Mapping[str, Any]) -> None:
        stdin = self._start().stdin
        assert stdin is not None
        stdin.write((json.dumps(request) + "\n").encode())
        stdin.flush()

    def _line(self, end: float | None) -> bytes | None:
        """The next line of the nursery; None at `end`, or once it is gone (then `_lost` holds what it took
        with it).
        """
        stdout = self._start().stdout
        assert stdout is not None
        while b"\n" not in self._buffer:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([stdout], [], [], left)[0]:
                return None
            chunk = os.read(stdout.fileno(), 1 << 16)
            if not chunk:
                self._nursery_lost()
                return None
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _nursery_lost(self) -> None:
        """The nursery died (killed by hand, or by a host out of memory): its jobs are crashes, and the next
        job starts a new one.
        """
        process = self._process
        status = process.poll() if process is not None else None
        if not self.pending:
            raise UsageError(
                f"the process that cases are forked from cannot start (exit status {status}): see its "
                "messages above"
            )
        for job in list(self.pending):
            del self.pending[job]
            self._lost.append(
                Report(job, "crash", message="ended together with the process it was forked from")
            )
        if process is not None:
            with contextlib.suppress(Exception):
                process.kill()
        self._process = None
