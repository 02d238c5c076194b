"""A run whose steps have different lengths, through the caching allocator, step after step.

The steady step of each length is the one that `course.py` writes. What a step leaves (gradients, outputs that
the loop's variable holds) the next one frees, whatever that one's length: so the blocks are handed on by
their place among those left. The tokens of a batch stay those of the first, far below a MiB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from memplan.planner.allocator.native import OutOfMemory, Ties
from memplan.planner.allocator.quick import Quick
from memplan.planner.allocator.replay import Mode, RunningReplay
from memplan.planner.formula.replay.course import Run
from memplan.planner.formula.replay.engine import as_events
from memplan.planner.formula.replay.load import Values
from memplan.planner.tables.errors import UsageError

Step = tuple[int, bool]
"""Tokens of a step's rows, and whether any of them is padding: a batch without has no mask."""
At = Callable[[Step], tuple[Run, Values]]
"""The run of a step, and the sizes at which it is that step's."""


class VariedRun:
    """A run under way. Without a `capacity`, in bytes, nothing bounds what is reserved."""

    def __init__(self, at: At, mode: Mode, ties: Ties, capacity: int | None = None) -> None:
        self._at = at
        self._allocator: _Allocator = (
            Quick(1 << 62 if capacity is None else capacity, ties)
            if mode == "native"
            else _Expandable(capacity, ties)
        )
        self._sizes: dict[Step, list[int]] = {}
        self._left: list[int] | None = None  # ids of what the step before left

    @property
    def releases(self) -> int:
        """How often the cache was given back to make room."""
        return self._allocator.releases

    def step(self, which: Step) -> tuple[int, int]:
        """(most allocated, most reserved) bytes during the next step; the first has the load before it.
        Raises OutOfMemory, after which nothing may follow, and UsageError where a step does not free what the
        one before leaves.
        """
        run, values = self._at(which)
        steady = run.written(values["R"]).steady
        if self._left is None:
            self._left = steady.given
            first = run.events(values)
            return self._allocator.run(first.events[: first.steady], first.sizes)
        if which not in self._sizes:
            self._sizes[which] = run.events(values).sizes
        if len(self._left) != len(steady.given):
            raise UsageError(f"a step of {which[0]} tokens frees other tensors than the one before it leaves")
        self._allocator.hand_on(self._left, steady.given)
        self._left = steady.left
        return self._allocator.run(steady.events, self._sizes[which])


class _Allocator(Protocol):
    releases: int

    def run(self, events: list[int], sizes: list[int]) -> tuple[int, int]: ...

    def hand_on(self, left: list[int], given: list[int]) -> None: ...


class _Expandable:
    """Expandable segments, asked as the native allocator's loop is."""

    def __init__(self, capacity: int | None, ties: Ties) -> None:
        self.replay = RunningReplay("expandable", capacity, ties=ties)
        self.releases = 0

    def run(self, events: list[int], sizes: list[int]) -> tuple[int, int]:
        """(most allocated, most reserved) bytes over these events. Raises OutOfMemory."""
        before = self.replay.position
        result = self.replay.run(as_events(events, sizes))
        self.releases = result.retries
        if result.oom is not None:
            raise OutOfMemory(result.needed)
        found = max(result.allocated, default=0), max(result.reserved, default=0)
        self.replay.begun = before + len(events)
        del result.allocated[:], result.reserved[:]
        return found

    def hand_on(self, left: list[int], given: list[int]) -> None:
        """As `Quick.hand_on`."""
        live = self.replay.live
        self.replay.live = {new: live[old] for old, new in zip(left, given, strict=True)}
