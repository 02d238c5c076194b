"""What the allocator makes of the formula's run: reserved bytes, and the smallest capacity that survives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from memplan.planner.allocator import quick
from memplan.planner.allocator.native import Ties
from memplan.planner.allocator.quick import EMPTY_CACHE, Quick
from memplan.planner.allocator.replay import Event, Mode, replay, smallest_capacity
from memplan.planner.formula.replay.events import Events
from memplan.planner.formula.replay.load import Values

if TYPE_CHECKING:
    from memplan.planner.formula.replay.course import Run


@dataclass
class Replayed:
    """One run through the caching allocator, in bytes, without the CUDA context. `step_`: over the steady
    step alone. `courses`: one, or where a race of threads decides several, of which the largest counts in all
    sizes and the one that reserves least in what survives; `reserved_of`: of each.
    """

    mode: Mode
    ties: Ties
    courses: tuple[Events, ...] = field(repr=False)
    reserved_of: tuple[int, ...]
    allocated_bytes: int
    reserved_bytes: int
    step_allocated_bytes: int
    step_reserved_bytes: int
    _capacities: dict[Mode, int] = field(default_factory=dict, repr=False)

    @property
    def events(self) -> Events:
        """The run; of several courses the one in which everything goes as late as it can."""
        return self.courses[0]

    @property
    def least(self) -> Events:
        """The course that reserves least."""
        return self.courses[self.reserved_of.index(min(self.reserved_of))]

    @cached_property
    def as_events(self) -> list[Event]:
        """The run as `planner/allocator/replay.py` takes it."""
        return as_events(self.events.events, self.events.sizes)

    def smallest_capacity(self, mode: Mode | None = None) -> int:
        """The smallest capacity that survives with release-and-retry; several replays."""
        mode = mode or self.mode
        if mode not in self._capacities:
            run, reserved = self.least, min(self.reserved_of)
            self._capacities[mode] = (
                quick.smallest_capacity(run.events, run.sizes, reserved, self.ties, run.streams)
                if mode == self.mode == "native"
                else smallest_capacity(
                    as_events(run.events, run.sizes), mode, ties=self.ties, streams=run.streams
                )
            )
        return self._capacities[mode]

    def survives(self, capacity: int, mode: Mode | None = None) -> bool:
        """Whether the run survives under a capacity; at most one replay: one that is not bounded reserves
        no more than `reserved_bytes`, and takes the same course under any capacity from there on.
        """
        if (mode or self.mode) == self.mode and capacity >= self.reserved_bytes:
            return True
        run = self.least
        if (mode or self.mode) == "native":
            return quick.survives(run.events, run.sizes, capacity, self.ties, run.streams)
        made = replay(
            as_events(run.events, run.sizes),
            mode="expandable",
            capacity=capacity,
            ties=self.ties,
            streams=run.streams,
        )
        return made.oom is None


def as_events(events: Sequence[int], sizes: Sequence[int]) -> list[Event]:
    """Events by id, with the bytes of each, as `planner/allocator/replay.py` takes them."""
    return [
        ("empty_cache", 0, 0)
        if each == EMPTY_CACHE
        else ("alloc", each, sizes[each])
        if each >= 0
        else ("free", ~each, 0)
        for each in events
    ]


def replayed(run: Run, values: Values, mode: Mode, ties: Ties) -> Replayed:
    """The run of a structure at these sizes, replayed without a bound."""
    late = (True, False) if run.rank.races() else (True,)
    courses = tuple(run.events(values, late=each) for each in late)
    found = [_peaks(events, mode, ties) for events in courses]
    most = [tuple(max(sizes) for sizes in zip(*spans, strict=True)) for spans in found]
    steady = [spans[1] for spans in found]
    return Replayed(
        mode,
        ties,
        courses,
        tuple(reserved for _, reserved in most),
        *(max(sizes) for sizes in zip(*most, strict=True)),
        *(max(sizes) for sizes in zip(*steady, strict=True)),
    )


def _peaks(events: Events, mode: Mode, ties: Ties) -> tuple[tuple[int, int], ...]:
    """Bytes (allocated, reserved) at most before the steady step, in it, and after it."""
    cut, end = events.steady, events.trained
    if mode == "native":
        allocator = Quick(ties=ties)
        parts = (events.events[:cut], events.events[cut:end], events.events[end:])
        return tuple(allocator.run(part, events.sizes, events.streams) for part in parts)
    made = replay(as_events(events.events, events.sizes), mode=mode, ties=ties, streams=events.streams)
    spans = (slice(cut), slice(cut - 1, end), slice(end - 1, None))
    return tuple((max(made.allocated[span]), max(made.reserved[span])) for span in spans)
