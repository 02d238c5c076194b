"""Observers of the real allocators: CUDA's own history and counters, and the CPU allocator's events as
torch.profiler reports them.

Neither shares code with the trace engine's observer: a prediction is checked against what the allocator says,
not against another tracer.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch

from memplan.profiler.history import ALLOC, FREE, OOM, Event, History, Mark

MOST_EVENTS = 3_000_000
_PREFIX = "memplan mark "
_SEGMENTS = {
    "segment_alloc": "reserved",
    "segment_map": "reserved",
    "segment_free": "released",
    "segment_unmap": "released",
}
_ACTIONS = {"alloc": ALLOC, "free_requested": FREE, "oom": OOM}
"""What counts as allocated ends where the free is asked for; `free_completed` comes later where another
stream still reads the block (c10/cuda/CUDACachingAllocator.cpp free, torch 2.11). Neither that nor `snapshot`
is an event of the history.
"""


class Recorder(Protocol):
    """Records a History between `start` and `stop`, and reads the device's counters at any time."""

    def start(self) -> None:
        """Start recording allocations and frees."""
        ...

    def mark(self, label: str) -> None:
        """Put a named mark into the history."""
        ...

    def stop(self) -> History:
        """Stop recording; the history so far."""
        ...

    def reset_peaks(self) -> None:
        """Start a new interval for the allocator's peak counters."""
        ...

    def counters(self) -> dict[str, int] | None:
        """The allocator's counters, bytes; None where it has none (CPU)."""
        ...

    def synchronise(self) -> None:
        """Wait until the device has done what was asked of it."""
        ...


class CudaRecorder:
    """The CUDA caching allocator's history (`_record_memory_history`) and statistics.

    A mark keeps the allocator's running counts of allocations and frees; the events are counted up to them
    when the history is read. `stacks`: each allocation's `op` is the Python lines that asked for it.
    """

    def __init__(self, stacks: bool = False) -> None:
        self._stacks = stacks
        self._marks: list[tuple[str, int, int]] = []
        self._first = (0, 0)
        self._recording = False

    def start(self) -> None:
        """Start torch's own memory history."""
        torch.cuda.memory._record_memory_history(
            enabled="all",
            context="alloc" if self._stacks else None,
            stacks="python",
            max_entries=MOST_EVENTS,
        )
        self._first = self._counts()
        self._recording = True

    def mark(self, label: str) -> None:
        """Note how many allocations and frees came before this label."""
        if self._recording:
            allocated, freed = self._counts()
            self._marks.append((label, allocated - self._first[0], freed - self._first[1]))

    def stop(self) -> History:
        """The history since `start`, from torch's snapshot."""
        if not self._recording:
            return History()
        self._recording = False
        snapshot = torch.cuda.memory._snapshot()
        torch.cuda.memory._record_memory_history(enabled=None)
        traces = snapshot["device_traces"]
        return read_trace(traces[0] if traces else [], self._marks)

    def reset_peaks(self) -> None:
        """Reset CUDA's peak counters once the device is idle."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()

    def counters(self) -> dict[str, int] | None:
        """Allocated, reserved and peak bytes, once the device is idle."""
        torch.cuda.synchronize()
        stats = torch.cuda.memory_stats()
        return {
            "allocated": stats["allocated_bytes.all.current"],
            "allocated_peak": stats["allocated_bytes.all.peak"],
            "requested_peak": stats["requested_bytes.all.peak"],
            "active_peak": stats["active_bytes.all.peak"],
            "reserved": stats["reserved_bytes.all.current"],
            "reserved_peak": stats["reserved_bytes.all.peak"],
            "retries": stats["num_alloc_retries"],
        }

    def synchronise(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize()

    @staticmethod
    def _counts() -> tuple[int, int]:
        stats = torch.cuda.memory_stats()
        return stats.get("allocation.all.allocated", 0), stats.get("allocation.all.freed", 0)


def read_trace(trace: list[dict[str, Any]], marks: list[tuple[str, int, int]]) -> History:
    """A History from a snapshot's `device_traces` entry. `marks`: (label, allocations so far, frees so
    far).
    """
    history = History(cut=len(trace) >= MOST_EVENTS)
    waiting = list(marks)
    allocated = freed = 0
    known: set[int] = set()
    for entry in trace:
        kind = _ACTIONS.get(entry["action"])
        while waiting and allocated >= waiting[0][1] and freed >= waiting[0][2]:
            history.marks.append(Mark(waiting.pop(0)[0], len(history.events)))
        if kind is None:
            if entry["action"] in _SEGMENTS:
                history.segments.append(
                    (len(history.events), _SEGMENTS[entry["action"]], entry.get("size", 0))
                )
            continue
        address = entry.get("device_free" if kind == OOM else "addr", 0)
        history.events.append(Event(kind, address, entry.get("size", 0), _lines(entry.get("frames"))))
        if kind == ALLOC:
            allocated += 1
            known.add(address)
        elif kind == FREE:
            freed += 1
            history.frees_unknown += address not in known
            known.discard(address)
    history.marks.extend(Mark(label, len(history.events)) for label, _, _ in waiting)
    return history


def _lines(frames: Iterable[dict[str, Any]] | None, most: int = 6) -> str:
    """The innermost Python lines of an entry's stack: 'file:line function < its caller < ...'."""
    known = [
        f"{frame['filename'].rsplit('/', 1)[-1]}:{frame['line']} {frame['name']}" for frame in frames or ()
    ]
    return " < ".join(known[:most])


class CpuRecorder:
    """The CPU allocator's own events, as torch.profiler reports them with `profile_memory=True` (each has
    address, bytes, running total).

    Marks are profiler ranges, so that they lie on the same clock. Only what is allocated after `start` is
    counted.
    """

    def __init__(self) -> None:
        self._profile: Any = None

    def start(self) -> None:
        """Start torch.profiler with memory events."""
        gc.collect()
        self._profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        )
        self._profile.__enter__()

    def mark(self, label: str) -> None:
        """Open and close a profiler range of this name."""
        if self._profile is not None:
            with torch.profiler.record_function(_PREFIX + label):
                pass

    def stop(self) -> History:
        """The history since `start`, from the profiler's events."""
        profile, self._profile = self._profile, None
        if profile is None:
            return History()
        profile.__exit__(None, None, None)
        return read_tree(profile.profiler.kineto_results.experimental_event_tree())

    def reset_peaks(self) -> None:
        """Nothing: the CPU's allocator has no counters."""
        return

    def counters(self) -> dict[str, int] | None:
        """None: the CPU's allocator has no counters."""
        return None

    def synchronise(self) -> None:
        """Nothing: the CPU computes at once."""
        return


def read_tree(roots: Any) -> History:
    """A History from torch.profiler's event tree, in order of time; an allocation's op is the innermost range
    around it.
    """
    entries = sorted(_flatten(roots), key=lambda entry: entry[0])
    history = History()
    known: set[int] = set()
    for _, name, allocation, op in entries:
        if allocation is None:
            if name.startswith(_PREFIX):
                history.marks.append(Mark(name.removeprefix(_PREFIX), len(history.events)))
            continue
        nbytes, address = allocation
        if nbytes > 0:
            known.add(address)
            history.events.append(Event(ALLOC, address, nbytes, op))
        elif address in known:
            known.discard(address)
            history.events.append(Event(FREE, address, -nbytes, op))
        else:
            history.frees_unknown += 1
    return history


def _flatten(roots: Any) -> Iterator[tuple[int, str, tuple[int, int] | None, str]]:
    """(time, name, (bytes, address) of an allocation, op) of what matters in the tree, without recursion."""
    stack = [(node, "") for node in roots]
    while stack:
        node, op = stack.pop()
        fields = node.extra_fields
        if hasattr(fields, "alloc_size"):
            if fields.device.type == "cpu":
                yield node.start_time_ns, "", (fields.alloc_size, fields.ptr), op
            continue
        name = node.name
        if name.startswith(_PREFIX):
            yield node.start_time_ns, name, None, ""
        inner = name if "::" in name and not name.startswith("autograd::") else op
        stack.extend((child, inner) for child in node.children)


RECORDERS: dict[str, type[CudaRecorder] | type[CpuRecorder]] = {"cuda": CudaRecorder, "cpu": CpuRecorder}
