"""Symbolic: one discrete structure (model, method, recipe, every switch) as functions of micro-batch B,
sequence length S and rank R.

Its programs hold, for each moment, the rows that can be alive at its peak; the same rows are evaluated as
Python ints, over NumPy arrays and as JavaScript for the report page.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

from memplan.planner.formula.after import after_training
from memplan.planner.formula.forward.context import Device, device_of
from memplan.planner.formula.lacking import refuse
from memplan.planner.formula.rows import SymbolicRow
from memplan.planner.formula.sharding.plan import ShardingPlan
from memplan.planner.formula.sharding.wiring import sharding_plan
from memplan.planner.formula.step import Guard, run_step
from memplan.planner.formula.symbolic.codegen import compile_python, javascript
from memplan.planner.formula.symbolic.codegen import grid as over_arrays
from memplan.planner.formula.symbolic.expr import Expr, total
from memplan.planner.formula.tape.peaks import TapePeak, candidates, largest, states_after
from memplan.planner.formula.tape.tape import Tape
from memplan.planner.inputs import tasks
from memplan.planner.inputs.companions import teacher_of
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.prediction import Breakdown
from memplan.planner.tables.components import COMPONENTS, GENERATION, STEP_MOMENTS
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.tasks import TASKS

SYMBOLS = ("B", "S", "R")


class PeakCandidate:
    """One possible peak of a moment: its rows (the resident ones and the candidate's), their total, and their
    sums by component.
    """

    def __init__(self, resident: Sequence[SymbolicRow], candidate: TapePeak | None = None) -> None:
        self._resident, self._candidate = resident, candidate

    @cached_property
    def rows(self) -> tuple[SymbolicRow, ...]:
        """Every tensor that is alive there, with its size as an expression."""
        return (*self._resident, *(self._candidate.rows if self._candidate else ()))

    @cached_property
    def size(self) -> Expr:
        """Allocated bytes there, over B, S and R."""
        candidate = self._candidate.size if self._candidate else 0
        return total((*(row.size for row in self._resident), candidate))

    @cached_property
    def components(self) -> tuple[Expr, ...]:
        """The same bytes by component, in the order of COMPONENTS."""
        moving = self._candidate.components if self._candidate else {}
        return tuple(
            total((*(r.size for r in self._resident if r.component == c), moving.get(c, 0)))
            for c in COMPONENTS
        )


class Totals(NamedTuple):
    """Bytes of one prediction without its rows: allocated by moment, and the peak."""

    moments: dict[str, int]
    peak_moment: str
    peak: int


class Program:
    """The moments of one structure in one guard: evaluated once as they stand, or as expressions that are
    compiled when first used.
    """

    def __init__(
        self, rank: ShardingPlan, device: Device, guard: Guard, loading: dict[str, list[PeakCandidate]]
    ) -> None:
        self.resident = rank.resident()
        self.loading = loading
        self.walked = STEP_MOMENTS if METHODS[rank.setup.method].trains != "nothing" else ("forward",)
        self.tape = run_step(rank.seen, device, guard, rank)
        self.generation: Tape | None = None
        if TASKS[rank.setup.task].generates:
            from memplan.planner.formula.generation import run_generation

            self.generation = run_generation(rank.seen, device, guard, rank)
        self.after = tuple(after_training(device, guard, rank))
        self.names = (*self.loading, *(name for _, names in self.tapes() for name in names))
        self.host = total((self.tape.host, *(row.size for row in rank.host())))
        self._known: dict[tuple[int, int, int], dict[str, int]] = {}

    def tapes(self) -> list[tuple[Tape, tuple[str, ...]]]:
        """Each tape, and the moments that are read from it."""
        sampled = () if self.generation is None else ((self.generation, (GENERATION,)),)
        return [*sampled, (self.tape, self.walked), *((tape, (name,)) for name, tape in self.after)]

    @cached_property
    def moments(self) -> dict[str, list[PeakCandidate]]:
        """For each moment every state that is the largest at some size."""
        found = dict(self.loading)
        for tape, names in self.tapes():
            for name, states in candidates(tape, names).items():
                found[name] = [PeakCandidate(self.resident, candidate) for candidate in states]
        return found

    def once(self, values: tuple[int, int, int]) -> dict[str, int]:
        """Bytes of each moment at one size, as `totals` has them, without compiling every state that is the
        largest somewhere.
        """
        known = self._known.get(values)
        if known is None:
            known = self._known[values] = {name: size for name, (size, _) in self._once(values).items()}
        return known

    def _once(self, values: tuple[int, int, int]) -> dict[str, tuple[int, PeakCandidate | int]]:
        """For each moment its bytes and its state, or how many events of the log made that."""
        named = dict(zip(SYMBOLS, values, strict=True))
        found: dict[str, tuple[int, PeakCandidate | int]] = {
            name: max(((s.size.evaluate(named), s) for s in states), key=itemgetter(0))
            for name, states in self.loading.items()
        }
        stays = sum(row.size.evaluate(named) for row in self.resident)
        for tape, names in self.tapes():
            for name, (size, position) in largest(tape, names, named).items():
                found[name] = (stays + size, position)
        return found

    @cached_property
    def _sizes(self) -> Any:
        return compile_python([state.size for states in self.moments.values() for state in states], SYMBOLS)

    @cached_property
    def _components(self) -> dict[str, list[Any]]:
        return {
            name: [compile_python(state.components, SYMBOLS) for state in states]
            for name, states in self.moments.items()
        }

    def chosen(self, values: tuple[int, int, int]) -> dict[str, tuple[int, int]]:
        """For each moment the index and the bytes of its largest state."""
        sizes = self._sizes(*values)
        chosen, start = {}, 0
        for name, states in self.moments.items():
            part = sizes[start : start + len(states)]
            largest = max(part)
            chosen[name] = (part.index(largest), largest)
            start += len(states)
        return chosen

    def totals(self, values: tuple[int, int, int]) -> Totals:
        """Allocated bytes by moment at (B, S, R), and the largest."""
        moments = {name: size for name, (_, size) in self.chosen(values).items()}
        peak = max(moments, key=moments.__getitem__)
        return Totals(moments, peak, moments[peak])

    def arrays(self, batch: Any, sequence: Any, rank: Any) -> dict[str, Any]:
        """Allocated bytes by moment over NumPy arrays: the largest state of each cell."""
        named = {"B": batch, "S": sequence, "R": rank}
        return {
            name: over_arrays([state.size for state in states], named, largest=True)[0]
            for name, states in self.moments.items()
        }

    def components(self, values: tuple[int, int, int]) -> dict[str, dict[str, int]]:
        """Bytes of each component by moment."""
        return {
            name: dict(zip(COMPONENTS, self._components[name][index](*values), strict=True))
            for name, (index, _) in self.chosen(values).items()
        }

    def breakdowns(self, values: tuple[int, int, int]) -> tuple[Breakdown, ...]:
        """The rows alive at the peak of each moment."""
        named = dict(zip(SYMBOLS, values, strict=True))
        chosen = {name: found for name, (_, found) in self._once(values).items()}
        rows = {name: found.rows for name, found in chosen.items() if not isinstance(found, int)}
        for tape, names in self.tapes():
            places = {name: place for name in names if isinstance(place := chosen[name], int)}
            states = states_after(tape, set(places.values()))
            rows |= {name: PeakCandidate(self.resident, states[place]).rows for name, place in places.items()}
        return tuple(
            Breakdown(name, tuple(row for symbolic in alive if (row := symbolic.at(named)).bytes))
            for name, alive in rows.items()
        )


class Symbolic:
    """One discrete structure as functions of micro-batch B, sequence length S and rank R."""

    def __init__(self, spec: ModelSpec, setup: Setup) -> None:
        refuse(spec, setup)
        self.spec, self.setup = spec, setup
        self.rank = sharding_plan(spec, setup)
        self.parameter_table = self.rank.stored
        self.device = device_of(setup)
        self.rows = tasks.read_at_once(setup)  # for each example of the micro-batch
        teacher = teacher_of(setup)
        self.windows = tuple(
            sorted(
                {
                    layer.attention.window
                    for _, layer in (*spec.layers, *(() if teacher is None else teacher.layers))
                    if layer.attention.window is not None
                }
            )
        )
        self._programs: dict[Guard, Program] = {}

    def guard(self, batch: int, sequence: int) -> Guard:
        """Which discrete facts hold at these sizes."""
        return Guard(batch * self.rows == 1, tuple(w for w in self.windows if sequence >= w))

    @cached_property
    def loading(self) -> dict[str, list[PeakCandidate]]:
        """The states of the load, which no guard changes: made once for all programs."""
        return {
            name: [PeakCandidate(rows) for rows in states] for name, states in self.rank.loading().items()
        }

    def program(self, guard: Guard) -> Program:
        """The program of a guard's sizes, made once."""
        known = self._programs.get(guard)
        if known is None:
            known = self._programs[guard] = Program(self.rank, self.device, guard, self.loading)
        return known

    def totals(self, batch: int, sequence: int, rank: int) -> Totals:
        """Allocated bytes by moment, and the peak, at these sizes: the sums of the rows that `breakdowns`
        gives.
        """
        return self.program(self.guard(batch, sequence)).totals((batch, sequence, rank))

    def peak_once(self, batch: int, sequence: int, rank: int) -> int:
        """Peak allocated bytes at one size only: cheaper than `totals` where a structure is asked a single
        question.
        """
        return max(self.program(self.guard(batch, sequence)).once((batch, sequence, rank)).values())

    def breakdowns(self, batch: int, sequence: int, rank: int) -> tuple[Breakdown, ...]:
        """The rows alive at the peak of each moment."""
        return self.program(self.guard(batch, sequence)).breakdowns((batch, sequence, rank))

    def guards(self) -> list[Guard]:
        """Every guard that some size can be in."""
        cuts = [tuple(w for w in self.windows if w <= cut) for cut in (0, *self.windows)]
        return [Guard(single, cut) for single in (True, False) for cut in dict.fromkeys(cuts)]

    def grid(self, batch: Any, sequence: Any, rank: Any = 1) -> dict[str, Any]:
        """Allocated bytes by moment, and `peak`, over arrays that broadcast together; each cell is what
        `totals` gives there.
        """
        import numpy

        batch, sequence, rank = (numpy.asarray(x) for x in (batch, sequence, rank))
        shape = numpy.broadcast_shapes(batch.shape, sequence.shape, rank.shape)
        result: dict[str, Any] = {}
        for guard in self.guards():
            longer = numpy.ones(sequence.shape, bool)
            for window in self.windows:
                longer &= (sequence >= window) if window in guard.windows else (sequence < window)
            where = numpy.broadcast_to(((batch * self.rows == 1) == guard.single) & longer, shape)
            if not where.any():
                continue
            for name, values in self.program(guard).arrays(batch, sequence, rank).items():
                values = numpy.broadcast_to(values, shape)
                result[name] = numpy.where(where, values, result[name]) if name in result else values.copy()
        result["peak"] = numpy.maximum.reduce(list(result.values()))
        return result

    def javascript(self) -> str:
        """A JavaScript function (B, S, R), BigInt each, that returns {moment: bytes} as BigInt, the same
        expressions in each guard.
        """
        parts = []
        for guard in self.guards():
            program = self.program(guard)
            longer = [f"S >= {w}n" if w in guard.windows else f"S < {w}n" for w in self.windows]
            single = f"B * {self.rows}n {'===' if guard.single else '!=='} 1n"
            condition = " && ".join([single, *longer])
            sizes = javascript(
                [state.size for states in program.moments.values() for state in states], SYMBOLS
            )
            counts = [len(states) for states in program.moments.values()]
            parts.append(
                f"  if ({condition}) return collect({list(program.names)}, {counts}, ({sizes})(B, S, R));"
            )
        collect = (
            "  const collect = (names, counts, sizes) => { let at = 0; const found = {}; "
            "names.forEach((name, i) => { "
            "found[name] = sizes.slice(at, at + counts[i]).reduce((a, b) => (a > b ? a : b)); at += "
            "counts[i]; }); return found; };"
        )
        return "(B, S, R) => {\n" + collect + "\n" + "\n".join(parts) + "\n}"
