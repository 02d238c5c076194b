"""What a dry run saw: moments, peaks, components and the line of the peak, from the report that the program
left.

No torch here. An Observation is no measurement: nothing ran on a GPU.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memplan.planner import __version__
from memplan.planner.tables.components import HELD_ACROSS_STEPS
from memplan.planner.tables.cublas import SIZES as WORKSPACE_SIZES
from memplan.profiler.dryrun.charges import ALLOC, FREE, OOM, SEGMENT, charged
from memplan.profiler.history import (
    Attribution,
    Block,
    Event,
    History,
    Mark,
    blocks_of,
    components_at,
    highest,
    mark_label,
    own,
)

SCHEMA = "memplan.dry-run/1"
LOAD = "load"
LARGEST = 3
_KINDS = {ALLOC: "alloc", FREE: "free", OOM: "oom"}
Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SeenMoment:
    """The peaks inside one moment, over every step; `components` (with `unattributed`) add up to
    `allocated_bytes`.
    """

    name: str
    allocated_bytes: int
    reserved_bytes: int
    components: Mapping[str, int] | None
    step: int


@dataclass(frozen=True, slots=True)
class LargeBlock:
    """One of the largest blocks at the peak that are neither weights nor optimizer states, and who asked for
    it.
    """

    nbytes: int
    component: str
    line: str


@dataclass(frozen=True, slots=True)
class Refused:
    """torch's out of memory: what was asked for, where in the user's code, what the device had."""

    requested_bytes: int | None
    free_bytes: int | None
    allocated_bytes: int
    reserved_bytes: int
    moment: str
    line: str
    message: str


@dataclass(frozen=True, slots=True)
class SeenRank:
    """One of several processes that trained: the peaks of its device."""

    rank: int
    outcome: str
    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True)
class Observation:
    """One process's dry run on one device. `outcome`: stopped (after the steps), ended (by itself), oom,
    error. `ranks`: every process that trained, where there were several.
    """

    outcome: str
    steps: int
    device: int
    devices: int
    torch: str
    cuda: str
    moments: tuple[SeenMoment, ...]
    peak_moment: str
    allocated_bytes: int
    reserved_bytes: int
    peak_line: str
    largest: tuple[LargeBlock, ...]
    retries: int
    notes: tuple[str, ...]
    refused: Refused | None = None
    error: str | None = None
    ranks: tuple[SeenRank, ...] = ()

    def to_document(self, context_bytes: int) -> dict[str, Any]:
        """The part of memplan.dry-run/1 that the program decides."""
        found = dataclasses.asdict(self)
        peak = {
            "moment": self.peak_moment,
            "allocated_bytes": self.allocated_bytes,
            "reserved_bytes": self.reserved_bytes,
            "context_bytes": context_bytes,
            "device_bytes": self.reserved_bytes + context_bytes,
            "line": self.peak_line,
        }
        head = {"schema": SCHEMA, "memplan_version": __version__, "gpu_measurement": False}
        for name in ("peak_moment", "allocated_bytes", "reserved_bytes", "peak_line"):
            del found[name]
        return {**head, "outcome": found.pop("outcome"), "peak": peak, **found}


def observe(reports: Sequence[Report]) -> Observation | None:
    """The observation of the process that trained: of several ranks the one that ran out of memory, else the
    one that reserves most. None: nobody used CUDA.
    """
    used = [report for report in reports if any(report["events"])]
    if not used:
        return None
    steps = max(report["steps"] for report in used)
    trained = [report for report in used if report["steps"] == steps or report["outcome"] == "oom"]
    ranks = {report["rank"]: _rank(report) for report in trained}

    def decides(report: Report) -> tuple[bool, int, int, int]:
        seen = _rank(report)
        return report["outcome"] == "oom", seen.reserved_bytes, -seen.rank, len(report["marks"])

    chosen = max(trained, key=decides)
    found = _Reader(chosen, _busiest(chosen)).observation()
    seen = tuple(ranks[rank] for rank in sorted(ranks)) if len(ranks) > 1 else ()
    return dataclasses.replace(found, ranks=seen)


def _busiest(report: Report) -> int:
    """The device on which a process allocates most."""
    return max(range(len(report["events"])), key=lambda device: _most(report, device, "allocated_peak"))


def _rank(report: Report) -> SeenRank:
    device = _busiest(report)
    peaks = (_most(report, device, f"{number}_peak") for number in ("allocated", "reserved"))
    return SeenRank(report["rank"], report["outcome"], *peaks)


def _most(report: Report, device: int, counter: str) -> int:
    return max((moment["counters"][device][counter] for moment in report["moments"]), default=0)


class _Reader:
    """One report read for one device."""

    def __init__(self, report: Report, device: int) -> None:
        self.report, self.device = report, device
        self.rows: list[list[int]] = report["events"][device]
        sizes = charged(self.rows, report["expandable"])
        places = [place for place, row in enumerate(self.rows) if row[0] < SEGMENT]
        self.kept = [self.rows[place] for place in places]
        self.events = [Event(_KINDS[row[0]], row[1], row[2]) for row in self.kept]
        self.blocks = blocks_of(self.events)
        self.sizes = {block.id: sizes.get(places[block.born], block.nbytes) for block in self.blocks}
        self.positions = self._positions()
        self.running = self._levels()
        self._own()

    def _positions(self) -> list[int]:
        """Events before each mark."""
        found, place, allocated, freed = [], 0, 0, 0
        for mark in self.report["marks"]:
            wanted = mark[3][self.device]
            while place < len(self.events) and (allocated < wanted[0] or freed < wanted[1]):
                allocated += self.events[place].kind == "alloc"
                freed += self.events[place].kind == "free"
                place += 1
            found.append(place)
        return found

    def _levels(self) -> list[int]:
        """Bytes of blocks alive after each event."""
        change = [0] * len(self.events)
        for block in self.blocks:
            change[block.born] += self.sizes[block.id]
            if block.died is not None:
                change[block.died] -= self.sizes[block.id]
        total, running = 0, []
        for step in change:
            total += step
            running.append(total)
        return running

    def _own(self) -> None:
        """Claims at hooks first, then what a forward pass or a recomputation leaves behind; workspaces of
        cuBLAS apart.
        """
        marks, claims = [], []
        for index, (step, moment, edge, _) in enumerate(self.report["marks"]):
            label = f"mark {index}" if edge == "claim" else mark_label(step, moment, index, edge)
            marks.append(Mark(label, self.positions[index]))
        for moment in self.report["moments"]:  # both edges under one label, as History pairs them
            begin, end = moment["begin"], moment["end"]
            for index, edge in ((begin, "begin"), (end, "end")):
                label = mark_label(moment["step"], moment["moment"], begin, edge)
                marks[index] = Mark(label, self.positions[index])
        for place, address, component, name in self.report["claims"]:
            claims.append(Attribution(f"mark {place}", address, component, name))
        history = History(self.events, marks, claims)
        self._workspaces(history)
        own(history, self.blocks)
        self._recomputed()

    def _workspaces(self, history: History) -> None:
        """A block of a workspace's size that a step makes and nobody frees is the workspace of a cuBLAS
        handle.
        """
        first = next((span.begin for span in history.spans() if span.step >= 0), len(self.events))
        named = {claim.address for claim in history.claims}
        for block in self.blocks:
            lasting = block.died is None and block.born >= first and block.address not in named
            if lasting and block.nbytes in WORKSPACE_SIZES:
                block.owner = "temporaries"

    def _recomputed(self) -> None:
        """What a recomputation in the backward pass still holds when it is over was saved for backward."""
        over = len(self.events)
        ends = [over] * len(self.events)
        for place in range(len(self.events) - 1, -1, -1):
            row = self.kept[place]
            if row[0] == ALLOC and not row[5]:
                over = place
            ends[place] = over
        for block in self.blocks:
            if block.owner is None and self.kept[block.born][5] and block.alive(ends[block.born]):
                block.owner = "activations"

    def _line(self, place: int, column: int) -> str:
        number = self.kept[place][column] if len(self.kept[place]) > column else -1
        return self.report["lines"][number] if number >= 0 else ""

    def observation(self) -> Observation:
        report = self.report
        moments = self._moments()
        top = max(moments, key=lambda found: found[0].allocated_bytes)
        peak, place, line = top
        error = report["error"]
        return Observation(
            report["outcome"],
            report["steps"],
            self.device,
            len(report["events"]),
            report["torch"],
            report["cuda"],
            tuple(found[0] for found in moments),
            peak.name,
            peak.allocated_bytes,
            _most(report, self.device, "reserved_peak"),
            line,
            self._largest(place),
            _most(report, self.device, "retries"),
            tuple(report["notes"]),
            self._refused() if report["outcome"] == "oom" else None,
            error if report["outcome"] == "error" else None,
        )

    def _moments(self) -> list[tuple[SeenMoment, int, str]]:
        """Each moment's largest over the steps, in order of first appearance: (moment, place of its peak,
        line).
        """
        found: dict[str, tuple[SeenMoment, int, str]] = {}
        for moment in self.report["moments"]:
            counters = moment["counters"][self.device]
            begin, end = self.positions[moment["begin"]], self.positions[moment["end"]]
            loading = moment["step"] < 0
            name = "load_peak" if loading else moment["moment"]
            place = highest(self.running, begin, end)[1]
            seen = self._seen(
                name, moment["step"], counters["allocated_peak"], counters["reserved_peak"], place
            )
            line = (self._line(place - 1, 3) if place > begin else "") or moment["line"]
            if name not in found or seen.allocated_bytes > found[name][0].allocated_bytes:
                found[name] = (seen, place, line)
            if loading:
                rest = self._seen(LOAD, moment["step"], counters["allocated"], counters["reserved"], end)
                found[LOAD] = (rest, end, "")
        return list(found.values())

    def _seen(self, name: str, step: int, allocated: int, reserved: int, place: int) -> SeenMoment:
        components = components_at(self.blocks, place, self.sizes)
        components["unattributed"] += allocated - sum(components.values())
        whole = components["unattributed"] >= 0
        return SeenMoment(name, allocated, reserved, components if whole else None, step)

    def _largest(self, place: int) -> tuple[LargeBlock, ...]:
        alive = [block for block in self.blocks if block.alive(place)]
        free = [block for block in alive if block.owner not in HELD_ACROSS_STEPS]
        free.sort(key=lambda block: -self.sizes[block.id])
        return tuple(self._large(block) for block in free[:LARGEST])

    def _large(self, block: Block) -> LargeBlock:
        line = self._line(block.born, 4)
        return LargeBlock(self.sizes[block.id], block.owner or "unattributed", short_line(line))

    def _refused(self) -> Refused:
        report = self.report
        last = next((row for row in reversed(self.kept) if row[0] == OOM), None)
        counters = report["moments"][-1]["counters"][self.device]
        return Refused(
            last[2] if last else None,
            last[1] if last else None,
            self.running[-1] if self.running else counters["allocated"],
            counters["reserved_peak"],
            "load" if report["moments"][-1]["step"] < 0 else report["moments"][-1]["moment"],
            report["error_line"],
            report["error"] or "",
        )


def short_line(line: str) -> str:
    """A source line without the folders above its package: 'transformers/models/llama/modeling_llama.py:473
    forward'.
    """
    return re.sub(r"^.*/(?:site|dist)-packages/", "", line)
