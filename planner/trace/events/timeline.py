"""From a log of events to moments: replay, peaks, the rows alive at each, and the timeline as data."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from memplan.planner.allocator.replay import Event, Replay, replay, smallest_capacity
from memplan.planner.inputs.setup import Setup
from memplan.planner.prediction import Breakdown, Peak, Row
from memplan.planner.tables.components import AFTER, GENERATION, HELD_ACROSS_STEPS, STEP_MOMENTS
from memplan.planner.tables.cublas import HELD
from memplan.planner.tables.torch_versions import TORCH_VERSIONS
from memplan.planner.trace.device.target import Target
from memplan.planner.trace.events.log import ALLOC, FREE, Log, Storage

POINTS = 2000  # the timeline's length in a document: each point is the largest of its stretch
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_WHY = {
    "weights": "held for the whole run",
    "gradients": ".grad of what is trained",
    "optimizer_states": "kept by the optimizer between steps",
    "activations": "held until backward has used it",
    "temporaries": "freed within its moment",
}


class Timeline:
    """A log replayed: `moments()` has the breakdown at each moment's peak, `points()` the curve."""

    def __init__(self, log: Log, setup: Setup, target: Target) -> None:
        self.log, self.setup, self.target = log, setup, target
        self.steps = max((mark.step for mark in log.marks), default=-1)
        self.streams = log.streams
        self.replay = (
            _exact(log.events)
            if target.device == "cpu"
            else replay(
                log.events,
                mode=setup.allocator,
                ties=TORCH_VERSIONS[setup.torch].equal_blocks,
                streams=self.streams,
            )
        )

    def moments(self) -> tuple[tuple[Breakdown, ...], Peak, Peak]:
        """(breakdowns, the peak over everything, the peak over the steady step)."""
        log, run = self.log, self.replay
        first = min(mark.begin for mark in log.marks if mark.step >= 0)
        spans: list[tuple[str, int, int]] = [("load_peak", 0, first)]
        steady = [mark for mark in log.marks if mark.step == self.steps]
        found: dict[str, tuple[int, int]] = {}
        for mark in steady:
            peaks = run.peaks(mark.begin, mark.end)
            if mark.moment not in found or peaks.allocated > found[mark.moment][0]:
                found[mark.moment] = (peaks.allocated, peaks.index)
        known = (GENERATION, *STEP_MOMENTS)
        order = [m for m in known if m in found] + [m for m in found if m not in known]
        start = run.peaks(*spans[0][1:])
        rows = [("load_peak", start.index), ("load", first - 1), *((name, found[name][1]) for name in order)]
        everything = run.peaks()
        where = self._moment_of(everything.index)
        if where in found and everything.allocated > found[where][0]:
            rows = [(name, everything.index if name == where else index) for name, index in rows]
        trained = [mark for mark in steady if mark.moment not in AFTER]
        begin = min(mark.begin for mark in trained)
        end = max(mark.end for mark in trained)
        steps = run.peaks(begin, end)
        breakdowns = tuple(Breakdown(name, self.rows_at(index)) for name, index in rows)
        peak = Peak(where, everything.allocated, everything.reserved, self.target.context_bytes)
        return (
            breakdowns,
            peak,
            Peak(self._moment_of(steps.index), steps.allocated, steps.reserved, self.target.context_bytes),
        )

    def _moment_of(self, index: int) -> str:
        for mark in self.log.marks:
            if mark.begin <= index < mark.end:
                return "load_peak" if mark.step < 0 else mark.moment
        return "load"

    def rows_at(self, index: int) -> tuple[Row, ...]:
        """The storages alive after event `index`, grouped by component, name, shape and dtype, largest
        first.
        """
        groups: dict[tuple[str, str, tuple[int, ...], str, str], list[int]] = {}
        for storage in alive_after(self.log, index):
            name, why = describe(storage)
            total = groups.setdefault((storage.component, name, storage.shape, storage.dtype, why), [0, 0, 0])
            total[0] += 1
            total[1] += storage.nbytes
            total[2] += self.replay.block_bytes[storage.id]
        rows = [
            Row(name, shape, dtype, count, nbytes, component, why, block)  # type: ignore[arg-type]
            for (component, name, shape, dtype, why), (count, nbytes, block) in groups.items()
        ]
        return tuple(sorted(rows, key=lambda row: -row.charged))

    def smallest_capacity(self) -> int | None:
        """The smallest GPU that survives release-and-retry, CUDA context included; None on CPU."""
        if self.target.device == "cpu":
            return None
        return (
            smallest_capacity(
                self.log.events,
                self.setup.allocator,
                self.replay,
                TORCH_VERSIONS[self.setup.torch].equal_blocks,
                self.streams,
            )
            + self.target.context_bytes
        )

    def expandable_capacity(self, usable: int) -> int | None:
        """A GPU's size in bytes, CUDA context included, that survives with expandable segments; None where
        `usable` bytes do not, or where they are what was replayed. One replay, for a GPU that does not
        survive without them.
        """
        if self.target.device == "cpu" or self.setup.allocator == "expandable":
            return None
        run = replay(
            self.log.events,
            mode="expandable",
            capacity=usable - self.target.context_bytes,
            ties=TORCH_VERSIONS[self.setup.torch].equal_blocks,
            streams=self.streams,
        )
        return None if run.oom is not None else max(run.reserved) + self.target.context_bytes

    def points(self) -> dict[str, Any]:
        """Allocated and reserved bytes against event index, thinned to at most POINTS maxima, with the
        moments.
        """
        allocated, reserved = self.replay.allocated, self.replay.reserved
        stride = max(1, -(-len(allocated) // POINTS))
        starts = range(0, len(allocated), stride)
        return {
            "events": len(allocated),
            "stride": stride,
            "allocated": [max(allocated[i : i + stride]) for i in starts],
            "reserved": [max(reserved[i : i + stride]) for i in starts],
            "moments": [
                {"step": m.step, "moment": m.moment, "begin": m.begin, "end": m.end} for m in self.log.marks
            ],
        }


def alive_after(log: Log, index: int) -> Iterable[Storage]:
    """Storages allocated by events up to and including `index` and not yet freed by them."""
    return (s for s in log.storages if s.born <= index and (s.died is None or s.died > index))


def describe(storage: Storage) -> tuple[str, str]:
    """(row name, reason): layers of one kind share a name."""
    if storage.held:
        return storage.name, HELD
    if storage.component in HELD_ACROSS_STEPS and storage.name:
        return _NUMBER.sub("*", storage.name), _WHY[storage.component]
    where = _NUMBER.sub("*", storage.module).removeprefix("base_model.model.")
    op = storage.name or storage.op.removeprefix("aten.").rsplit(".", 1)[0]
    if storage.name == "bucket":
        return f"{where} bucket", "DDP copies gradients into buckets for the all-reduce"
    why = f"saved for backward, made by {op}" if storage.saved else f"{_WHY[storage.component]}, made by {op}"
    return (f"{where}: {op}" if where else op), why


def _exact(events: Iterable[Event]) -> Replay:
    """The host's allocator: every request is what it asks for, nothing is cached."""
    result = Replay()
    current = 0
    sizes = result.block_bytes
    for kind, sid, nbytes in events:
        if kind == ALLOC:
            sizes[sid] = nbytes
            current += nbytes
        elif kind == FREE:
            current -= sizes[sid]
        result.allocated.append(current)
        result.reserved.append(current)
    return result
