"""A run whose steps have different lengths, through the caching allocator, step after step.

The steady step of each length is the one that `course.py` writes. What a step leaves (gradients, outputs that
the loop's variable holds) the next one frees, whatever that one's length: so the blocks are handed on by
their place among those left. Left as they were in the first step are a batch's own tokens, far below a MiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from memplan.planner.allocator.native import Ties
from memplan.planner.allocator.quick import Quick
from memplan.planner.allocator.replay import Event, Mode, RunningReplay
from memplan.planner.formula.replay.course import Run
from memplan.planner.formula.replay.engine import as_events
from memplan.planner.formula.replay.load import Values
from memplan.planner.tables.errors import UsageError

Step = tuple[int, bool]
"""Tokens of a step's rows, and whether any of them is padding: a batch without has no mask."""
At = Callable[[Step], tuple[Run, Values]]
"""The run of a step, and the sizes at which it is that step's."""


class _Allocator(Protocol):
    def run(self, events: list[int], sizes: list[int]) -> tuple[int, int]: ...

    def hand_on(self, left: list[int], given: list[int]) -> None: ...


class _Expandable:
    """Expandable segments, asked as the native allocator's loop is."""

    def __init__(self, ties: Ties) -> None:
        self.replay = RunningReplay("expandable", ties=ties)

    def run(self, events: list[int], sizes: list[int]) -> tuple[int, int]:
        """(most allocated, most reserved) bytes over these events."""
        made: list[Event] = as_events(events, sizes)
        before = self.replay.position
        result = self.replay.run(made)
        assert self.replay.position == before + len(made), "nothing bounds the replay"
        found = max(result.allocated, default=0), max(result.reserved, default=0)
        del result.allocated[:], result.reserved[:]
        self.replay.begun = before + len(made)
        return found

    def hand_on(self, left: list[int], given: list[int]) -> None:
        """As `Quick.hand_on`."""
        live = self.replay.live
        self.replay.live = {new: live[old] for old, new in zip(left, given, strict=True)}


def replay_steps(at: At, steps: Iterable[Step], mode: Mode, ties: Ties) -> Iterator[tuple[int, int]]:
    """(most allocated, most reserved) bytes during each step, the first with the load before it. Nothing
    bounds what is reserved. UsageError where two steps leave different tensors.
    """
    allocator: _Allocator = Quick(ties=ties) if mode == "native" else _Expandable(ties)
    sizes: dict[Step, list[int]] = {}
    left: list[int] | None = None
    for which in steps:
        run, values = at(which)
        step = run.written(values["R"]).steady
        if left is None:  # the first step, behind the load
            events = run.events(values)
            left = step.given
            yield allocator.run(events.events[: events.steady], events.sizes)
            continue
        if which not in sizes:
            sizes[which] = run.events(values).sizes
        if len(left) != len(step.given):
            raise UsageError(f"a step of {which[0]} tokens frees other tensors than the step before it leaves")
        allocator.hand_on(left, step.given)
        left = step.left
        yield allocator.run(step.events, sizes[which])
