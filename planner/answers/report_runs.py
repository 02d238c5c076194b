"""A structure's run through the caching allocator, for the page: which tensor comes and goes when, and how
large each is as an expression over B, S and R.

The page replays it at every position of its controls (report_allocator.js), so what it says is reserved is
what `Need` says, and not a guess between replays. Which events there are depends on the guard alone; the
sizes that depend on the rank are polynomials in it, found at three ranks and tried at two more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from memplan.planner.allocator.quick import EMPTY_CACHE
from memplan.planner.answers.report_tables import PageTables
from memplan.planner.formula.engine import has_free_rank, rank_of, run_of
from memplan.planner.formula.symbolic.expr import Expr, const, product, symbol
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.methods import METHODS

if TYPE_CHECKING:
    from memplan.planner.formula.forward.decoder import Guard
    from memplan.planner.formula.replay.course import Run

AT, TRIED = (1, 8, 64), (3, 200)
"""Ranks that a size's polynomial goes through, and others at which it must be right."""


NEAR = 64
"""How far back a release is told by the births since; further back, from the release before it."""


@dataclass(frozen=True, slots=True)
class SymbolicRun:
    """`steps` are the events as text, `sizes` the distinct sizes and `which` has for each tensor, in the
    order of births, the place of its own; `steady`, `trained`: the steps before the steady step and its end;
    `count` the events.

    An event is 0 where the next tensor is born, n where the n-th last is released, "pn" or "mn" where one
    born n later or earlier than the last such one is, "e" where the cache is given back: equal layers give
    equal text, which gzip makes small.
    """

    steps: str
    which: str
    sizes: tuple[Expr, ...]
    steady: int
    trained: int
    count: int

    def written(self, tables: PageTables) -> dict[str, Any]:
        """The same with the long texts and the sizes as places."""
        return {
            "steps": tables.text("steps", self.steps),
            "which": tables.text("which", self.which),
            "sizes": [tables.size(size) for size in self.sizes],
            "steady": self.steady,
            "trained": self.trained,
        }


def symbolic_run(spec: ModelSpec, setup: Setup, guard: Guard) -> SymbolicRun | None:
    """The run of a structure under a guard. None where one GPU does not run it natively, or a size is no
    polynomial in the rank.
    """
    run = run_of(spec, setup, guard)
    if run is None or setup.allocator != "native":
        return None
    sizes = _sizes(run)
    if sizes is None:
        return None
    events = run.written(AT[0]).events
    order: dict[int, int] = {}
    steps: list[str] = []
    marks = {events.steady: 0, events.trained: 0}
    far = 0
    for position, event in enumerate((*events.events, None)):
        if position in marks:
            marks[position] = len(steps)
        if event == EMPTY_CACHE:
            steps.append("e")
        elif event is not None and event >= 0:
            order[event] = len(order)
            steps.append("0")
        elif event is not None and (born := order.get(~event)) is not None:  # else it asks nothing
            back = len(order) - born
            steps.append(str(back) if back < NEAR else f"{'p' if born >= far else 'm'}{abs(born - far)}")
            if back >= NEAR:
                far = born
    distinct: dict[Expr, int] = {}
    which = [distinct.setdefault(sizes[each], len(distinct)) for each in order]
    texts = " ".join(steps), " ".join(map(str, which))
    return SymbolicRun(*texts, tuple(distinct), marks[events.steady], marks[events.trained], len(steps))


def _sizes(run: Run) -> list[Expr] | None:
    """For each id its bytes over B, S and R."""
    varies = has_free_rank(run.setup) and METHODS[run.setup.method].trains == "adapter"
    ranks = (*AT, *TRIED) if varies else (rank_of(run.setup),)
    scripts = {rank: run.written(rank) for rank in ranks}
    first = scripts[ranks[0]]
    if any(script.events.events != first.events.events for script in scripts.values()):
        return None
    found: list[Expr] = []
    known: dict[tuple[int, ...], Expr | None] = {}
    for values in zip(*(script.events.sizes for script in scripts.values()), strict=True):
        if values not in known:
            known[values] = _polynomial(values)
        size = known[values]
        if size is None:
            return None
        found.append(size)
    for start, count, tape, chosen in first.fill:
        one = run.tapes[tape]
        assert one is not None
        found[start : start + count] = [one.infos[each].size for each in chosen(range(len(one.infos)))]
    for which, size in first.batch:
        found[which] = size
    return found


def _polynomial(values: Sequence[int]) -> Expr | None:
    """a + b R + c R^2 with whole numbers through all these values at AT and TRIED; None where there is
    none.
    """
    if len(set(values)) == 1:  # also where the rank belongs to the structure
        return const(values[0])
    (x0, x1, x2), (y0, y1, y2) = AT, values[:3]
    slope, next_slope = Fraction(y1 - y0, x1 - x0), Fraction(y2 - y1, x2 - x1)
    square = (next_slope - slope) / (x2 - x0)
    linear = slope - square * (x0 + x1)
    constant = y0 - linear * x0 - square * x0 * x0
    whole = (constant, linear, square)
    if any(each.denominator != 1 for each in whole):
        return None
    if any(constant + linear * x + square * x * x != y for x, y in zip((*AT, *TRIED), values, strict=True)):
        return None
    rank = symbol("R")
    return const(int(constant)) + product((rank, int(linear))) + product((rank, rank, int(square)))
