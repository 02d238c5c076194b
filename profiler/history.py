"""What a device's own allocator says happened: allocations and frees in order, with marks between them, and
who owns which block.

Pure data, no torch. A claim names a block by its address at a mark; the block is then owned for its whole
life, before the mark too, so a gradient that is found after the backward pass was a gradient at the backward
pass's peak.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memplan.planner.tables import cublas
from memplan.planner.tables.components import COMPONENTS

ALLOC, FREE, OOM = "alloc", "free", "oom"
LOADED = "loaded"
"""The mark after model, optimizer and batch are there, before the first step."""


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the allocator's history; `nbytes` is what was requested, `op` the operator that asked
    (where the observer knows).
    """

    kind: str
    address: int
    nbytes: int
    op: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A point between events: `position` events have happened. Moments have two: `begin` and `end`."""

    label: str
    position: int


@dataclass(frozen=True, slots=True)
class Attribution:
    """`address` belongs to `component` at the mark of that label."""

    label: str
    address: int
    component: str
    name: str = ""


@dataclass(slots=True)
class Block:
    """One block's life: events[born] allocated it, events[died] freed it (None: still there)."""

    id: int
    address: int
    nbytes: int
    born: int
    died: int | None = None
    owner: str | None = None

    def alive(self, position: int) -> bool:
        """Whether it is there once `position` events have happened."""
        return self.born < position and (self.died is None or self.died >= position)


@dataclass(frozen=True, slots=True)
class Span:
    """One moment of one step: events[begin:end]."""

    step: int
    moment: str
    begin: int
    end: int


@dataclass
class History:
    """An allocator's history, as a recorder leaves it. `frees_unknown` counts frees of what was there before
    it began.
    """

    events: list[Event] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    claims: list[Attribution] = field(default_factory=list)
    segments: list[tuple[int, str, int]] = field(
        default_factory=list
    )  # (events before, reserved | released, bytes), CUDA only
    cut: bool = False  # the observer's own buffer was full: the beginning is missing
    frees_unknown: int = 0

    def to_document(self) -> dict[str, Any]:
        """Everything but the claims, compact: addresses are relative to the lowest."""
        base = min((event.address for event in self.events if event.kind != OOM), default=0)
        rows = [
            [event.kind, event.nbytes, event.address - (0 if event.kind == OOM else base)]
            for event in self.events
        ]
        return {
            "events": rows,
            "segments": [list(segment) for segment in self.segments],
            "cut": self.cut,
            "marks": [[mark.label, mark.position] for mark in self.marks],
        }

    def position(self, label: str) -> int:
        """Events that happened before a mark; KeyError where there is none of that label."""
        for mark in self.marks:
            if mark.label == label:
                return mark.position
        raise KeyError(label)

    def spans(self) -> list[Span]:
        """The moments of every step, in order. A moment that an error cut short ends with the history."""
        found: list[Span] = []
        positions = {mark.label: mark.position for mark in self.marks}
        for mark in self.marks:
            parts = mark.label.split()
            if len(parts) == 4 and parts[3] == "begin":
                end = positions.get(mark.label.removesuffix("begin") + "end", len(self.events))
                found.append(Span(int(parts[0]), parts[1], mark.position, end))
        return found


def mark_label(step: int, moment: str, repeat: int, edge: str) -> str:
    """The label of one edge of a moment; `repeat` counts the micro-batches of gradient accumulation."""
    return f"{step} {moment} {repeat} {edge}"


def blocks_of(events: Sequence[Event]) -> list[Block]:
    """Every block, in order of its allocation."""
    blocks: list[Block] = []
    live: dict[int, Block] = {}
    for index, event in enumerate(events):
        if event.kind == ALLOC:
            block = Block(len(blocks), event.address, event.nbytes, index)
            blocks.append(block)
            live[event.address] = block
        elif event.kind == FREE:
            gone = live.pop(event.address, None)
            if gone is not None:
                gone.died = index
    return blocks


def storage_events(events: Sequence[Event], blocks: Sequence[Block]) -> list[tuple[str, int, int]]:
    """(alloc | free, block id, bytes): the form that the allocator's replay and the alignment read. Frees of
    unknown blocks are dropped.
    """
    places: dict[int, tuple[str, int, int]] = {}
    for block in blocks:
        places[block.born] = (ALLOC, block.id, block.nbytes)
        if block.died is not None:
            places[block.died] = (FREE, block.id, block.nbytes)
    return [places[index] for index in range(len(events)) if index in places]


def levels(events: Sequence[Event]) -> list[int]:
    """Requested bytes alive after each event."""
    total, running = 0, []
    live: dict[int, int] = {}
    for event in events:
        if event.kind == ALLOC:
            live[event.address] = event.nbytes
            total += event.nbytes
        elif event.kind == FREE:
            total -= live.pop(event.address, 0)
        running.append(total)
    return running


def highest(running: Sequence[int], begin: int, end: int) -> tuple[int, int]:
    """(bytes, position) of the largest level in events[begin:end], what was there before included; the first
    place of equal ones.
    """
    best, place = (running[begin - 1] if begin else 0), begin
    for index in range(begin, min(end, len(running))):
        if running[index] > best:
            best, place = running[index], index + 1
    return best, place


def own(history: History, blocks: Sequence[Block]) -> None:
    """Settle who owns each block: first by claims, in their order; then the workspaces of cuBLAS are known by
    their size, and what a forward pass leaves behind is activations.
    """
    by_address: dict[int, list[Block]] = {}
    for block in blocks:
        by_address.setdefault(block.address, []).append(block)
    positions = {mark.label: mark.position for mark in history.marks}
    for claim in history.claims:
        position = positions.get(claim.label)
        if position is None:
            continue
        lives = by_address.get(claim.address, [])  # one after the other, in order of birth
        last = bisect_left(lives, position, key=lambda block: block.born) - 1
        if last >= 0 and lives[last].alive(position) and lives[last].owner is None:
            lives[last].owner = claim.component
    forwards = [span for span in history.spans() if span.moment == "forward"]
    for block in blocks:
        if block.owner is None and block.nbytes in cublas.SIZES and block.died is None:
            block.owner = (
                "temporaries"  # the workspace of a thread's cuBLAS handle, held until the thread exits
            )
        if block.owner is None and any(
            span.begin <= block.born < span.end and block.alive(span.end) for span in forwards
        ):
            block.owner = "activations"  # saved for backward, or outputs that the loop holds


def components_at(
    blocks: Iterable[Block], position: int, charged: Mapping[int, int] | None = None
) -> dict[str, int]:
    """Bytes by component once `position` events have happened; blocks that nothing claims are `unattributed`.

    `charged` gives the allocator's block size by block id; requested bytes count where it is None.
    """
    totals = dict.fromkeys((*COMPONENTS, "unattributed"), 0)
    for block in blocks:
        if block.alive(position):
            totals[block.owner or "unattributed"] += (
                block.nbytes if charged is None else charged.get(block.id, block.nbytes)
            )
    return totals
