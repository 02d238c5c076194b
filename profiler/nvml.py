"""How many bytes of the GPU this process has, asked from outside the process: NVML by pynvml, else
nvidia-smi, else CUDA itself.

A process id inside a container is not the one that NVML lists: the answer comes from the best of four
sources, and the record says which.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memplan.planner.tables.units import MIB

OWN, NEW, GROWTH, ALL = (
    "this process",
    "the one process that appeared",
    "the device's growth",
    "the whole device",
)
NOTES = {
    NEW: (
        "NVML lists other process ids (a container): the device bytes are those of the one process that "
        "appeared since the start"
    ),
    GROWTH: "NVML does not list this process: the device bytes are what the whole device gained since the "
    "start",
    ALL: (
        "neither NVML nor nvidia-smi answers: the device bytes are those of the whole device, whoever uses it"
    ),
}
"""What a record says about a source that is not the process itself."""


@dataclass(frozen=True)
class Usage:
    """A look at the GPU: bytes in use on the whole device, and by process; None and empty where nobody
    tells.
    """

    used: int | None = None
    processes: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class DeviceBytes:
    """Bytes of the device that this process has, CUDA context included, and which of the sources above
    told.
    """

    nbytes: int
    source: str

    @property
    def note(self) -> str | None:
        """What to know of the source of these bytes; None for the process itself."""
        return NOTES.get(self.source)


def look() -> Usage:
    """The GPU that this process uses, as NVML or nvidia-smi see it now. Initializes no CUDA."""
    with _nvml() as found:
        if found is not None:
            return _from_nvml(*found)
    return _from_smi()


def of_this_process(before: Usage, now: Usage, pid: int, free_bytes: int, total_bytes: int) -> DeviceBytes:
    """What `pid` has of the device: `before` was seen when it had not touched CUDA yet, free and total bytes
    are CUDA's own.
    """
    own = now.processes.get(pid)
    if own:
        return DeviceBytes(own, OWN)
    appeared = [nbytes for other, nbytes in now.processes.items() if other not in before.processes and nbytes]
    if len(appeared) == 1:
        return DeviceBytes(appeared[0], NEW)
    if before.used is not None and now.used is not None and now.used > before.used:
        return DeviceBytes(now.used - before.used, GROWTH)
    return DeviceBytes(total_bytes - free_bytes, ALL)


def driver() -> str | None:
    """The NVIDIA driver's version; None where neither NVML nor nvidia-smi tells."""
    with _nvml() as found:
        if found is not None:
            text = found[0].nvmlSystemGetDriverVersion()
            return text.decode() if isinstance(text, bytes) else str(text)
    rows = _smi("--query-gpu=driver_version", str(visible()))
    return rows[0] if rows else None


def visible() -> int | str:
    """The first entry of CUDA_VISIBLE_DEVICES (an index or a UUID), 0 where it is not set."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return int(first) if first.isdecimal() else first or 0


@contextlib.contextmanager
def _nvml() -> Any:
    """(pynvml, handle of the GPU); None where the library, the driver or the GPU is missing. NVML is optional
    evidence.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        yield None
        return
    try:
        which = visible()
        found = (
            pynvml.nvmlDeviceGetHandleByIndex(which)
            if isinstance(which, int)
            else pynvml.nvmlDeviceGetHandleByUUID(which)
        )
    except Exception:
        found = None
    try:
        yield None if found is None else (pynvml, found)
    finally:
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


def _from_nvml(pynvml: Any, handle: Any) -> Usage:
    used, processes = None, {}
    with contextlib.suppress(pynvml.NVMLError):
        used = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    with contextlib.suppress(pynvml.NVMLError):
        processes = {
            int(p.pid): int(p.usedGpuMemory or 0) for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        }
    return Usage(used, processes)


def _from_smi() -> Usage:
    """The same from nvidia-smi's CSV, whose sizes are MiB."""
    which = str(visible())
    used = _smi("--query-gpu=memory.used", which)
    rows = (row.split(",") for row in _smi("--query-compute-apps=pid,used_memory", which))
    processes = {
        int(pid): int(size) * MIB
        for pid, size in rows
        if pid.strip().isdecimal() and size.strip().isdecimal()
    }
    return Usage(int(used[0]) * MIB if used and used[0].isdecimal() else None, processes)


def _smi(query: str, which: str) -> list[str]:
    command = ["nvidia-smi", f"--id={which}", query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
