"""Runs the program over the stub libraries in a process group of its own, and ends all of it whatever
happens.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

INSIDE = Path(__file__).with_name("inside")
GRACE = 3.0
"""Seconds between asking a program to end and ending it."""
_DROPPED = (
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "CUDA_LAUNCH_BLOCKING",
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How the program ended: its status (negative: a signal), None where time ran out; what it printed; its
    reports.
    """

    status: int | None
    output: str
    reports: tuple[str, ...]
    last_progress: str
    seconds: float


def run_program(
    command: Sequence[str],
    variables: Mapping[str, str],
    preload: str,
    deadline: float,
    notice: Callable[[str], None],
) -> Ended:
    """Run it to its end or the deadline (seconds). `notice` is told what the program is doing."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="memplan-dry-run-") as name:
        folder = Path(name)
        around = program_environment(variables, preload, folder)
        with (folder / "output").open("wb") as output, _started(command, around, output, name) as process:
            status = _wait(process, began + deadline, lambda: notice(_progress(folder)))
        text = (folder / "output").read_text(encoding="utf-8", errors="replace")
        reports = tuple(path.read_text() for path in sorted(folder.glob("report-*.json")))
        return Ended(status, text, reports, _progress(folder), time.monotonic() - began)


def program_environment(variables: Mapping[str, str], preload: str, reports: Path) -> dict[str, str]:
    """The program's environment: its own, with the stubs before everything and our folder first on Python's
    path.
    """
    kept = {key: value for key, value in os.environ.items() if key not in _DROPPED}
    path = [str(INSIDE), *filter(None, [kept.get("PYTHONPATH")])]
    own = {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MEMPLAN_DRYRUN_REPORTS": str(reports),
    }
    return {**kept, **variables, **stub_environment(preload), **own}


def stub_environment(libraries: str) -> dict[str, str]:
    """The variables that put a process over stub libraries (LD_PRELOAD's value); what was preloaded stays."""
    return {
        "LD_PRELOAD": ":".join(filter(None, [libraries, os.environ.get("LD_PRELOAD")])),
        "TRITON_LIBCUDA_PATH": str(Path(libraries.split(":")[0]).parent),
    }


@contextlib.contextmanager
def _started(
    command: Sequence[str], around: dict[str, str], output: IO[bytes], mark: str
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=around,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _end(process, mark)


def _wait(process: subprocess.Popen[bytes], end: float, tick: Callable[[], None]) -> int | None:
    while time.monotonic() < end:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(0.2)
        tick()
    return None


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Nothing that was started stays: the group, then what left it but still carries our variable."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    _signal_group(process, signal.SIGKILL)
    process.wait()
    for number in _carrying(mark):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(number, signal.SIGKILL)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _carrying(mark: str) -> list[int]:
    """Processes whose environment names this run's folder of reports."""
    wanted = f"MEMPLAN_DRYRUN_REPORTS={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
    return found


def _progress(folder: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        newest = max(folder.glob("progress-*"), key=lambda path: path.stat().st_mtime)
        return newest.read_text(errors="replace")
    return ""
