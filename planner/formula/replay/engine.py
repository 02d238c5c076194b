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
    step alone.
    """

    mode: Mode
    ties: Ties
    events: Events = field(repr=False)
    allocated_bytes: int = 0
    reserved_bytes: int = 0
    step_allocated_bytes: int = 0
    step_reserved_bytes: int = 0
    _capacities: dict[Mode, int] = field(default_factory=dict, repr=False)

    @cached_property
    def as_events(self) -> list[Event]:
        """The run as `planner/allocator/replay.py` takes it."""
        return as_events(self.events.events, self.events.sizes)

    def smallest_capacity(self, mode: Mode | None = None) -> int:
        """The smallest capacity that survives with release-and-retry; several replays."""
        mode = mode or self.mode
        if mode not in self._capacities:
            run = self.events
            self._capacities[mode] = (
                quick.smallest_capacity(run.events, run.sizes, self.reserved_bytes, self.ties)
                if mode == self.mode == "native"
                else smallest_capacity(self.as_events, mode, ties=self.ties)
            )
        return self._capacities[mode]

    def survives(self, capacity: int, mode: Mode | None = None) -> bool:
        """Whether the run survives under a capacity; at most one replay: one that is not bounded reserves
        no more than `reserved_bytes`, and takes the same course under any capacity from there on.
        """
        if (mode or self.mode) == self.mode and capacity >= self.reserved_bytes:
            return True
        if (mode or self.mode) == "native":
            return quick.survives(self.events.events, self.events.sizes, capacity, self.ties)
        return replay(self.as_events, mode="expandable", capacity=capacity, ties=self.ties).oom is None


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
    events = run.events(values)
    found = Replayed(mode, ties, events)
    cut, end = events.steady, events.trained
    if mode == "native":
        allocator = Quick(ties=ties)
        before = allocator.run(events.events[:cut], events.sizes)
        steady = allocator.run(events.events[cut:end], events.sizes)
        after = allocator.run(events.events[end:], events.sizes)
    else:
        made = replay(found.as_events, mode=mode, ties=ties)
        before = max(made.allocated[:cut]), max(made.reserved[:cut])
        steady = max(made.allocated[cut - 1 : end]), max(made.reserved[cut - 1 : end])
        after = max(made.allocated[end - 1 :]), max(made.reserved[end - 1 :])
    found.allocated_bytes = max(before[0], steady[0], after[0])
    found.reserved_bytes = max(before[1], steady[1], after[1])
    found.step_allocated_bytes, found.step_reserved_bytes = steady
    return found
