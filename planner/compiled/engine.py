"""compiled(config, setup): what the trace predicts, from a program that is solved once and kept.

A question's own sizes are traced directly the first time (one trace, kept as it is); a program for a whole
regime is made where many sizes are asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.planner.compiled import store
from memplan.planner.compiled.nodes import NotPolynomialError, Point
from memplan.planner.compiled.program import DifferentStructureError, Program, confirm, made, same_structure
from memplan.planner.compiled.reduce import direct, reduced
from memplan.planner.compiled.regime import Regime, regimes
from memplan.planner.inputs.setup import Setup
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.progress import Listener, tell, telling
from memplan.planner.trace.engine import predicted, recorded
from memplan.planner.trace.events.log import Log
from memplan.planner.trace.events.record import Facts


class Compiled:
    """One model and structure; `at` answers for its sizes, by traces of its own as they are needed."""

    def __init__(self, config: Mapping[str, Any], setup: Setup, progress: Listener = tell) -> None:
        from memplan.planner.trace.device.target import target_of

        self.config, self.setup, self.progress = config, setup, progress
        self.target = target_of(setup)
        self._programs: dict[Regime, Program | None] = {}
        self._logs: dict[Point, tuple[Log, Facts]] = {}
        self._confirmed: dict[tuple[Regime, Point], Log] = {}  # what a program was found to say

    def at(self, point: Point, name: str = "model", *, solve: bool = False) -> Prediction:
        """The trace's prediction at (micro-batch, sequence length). `solve`: other sizes will be asked, so
        that a program for all of their regime is worth its traces.
        """
        setup = self.setup.with_(micro_batch=point[0], sequence_length=point[1])
        log, facts = self.log(point, solve=solve)
        return predicted(self.config, setup, log, facts, name)

    def log(self, point: Point, *, solve: bool = False) -> tuple[Log, Facts]:
        """The run's events at those sizes, and the model's counts."""
        *wide, exact = regimes(self.config, self.setup.with_(micro_batch=point[0], sequence_length=point[1]))
        for wanted in (*wide, exact):
            program = self.program(wanted, solve=solve or wanted == exact)
            if program is not None:
                try:
                    found = self._confirmed.get((wanted, point)) or program.at(point, self._kernels())
                    return found, program.facts_at(point)
                except NotPolynomialError:
                    continue
        raise AssertionError("a point's own trace is a program")

    def program(self, wanted: Regime, *, solve: bool = True) -> Program | None:
        """The program of a regime, kept from before or solved now; None where its sizes are no polynomials or
        its events depend on them, and where it would have to be solved first.
        """
        if wanted in self._programs:
            return self._programs[wanted]
        key = store.key(self.config, self.setup, self.target, wanted)
        found = store.load(key)
        if found is None:
            if not solve:
                return None
            found = self._solved(wanted)
            if found is not None:
                store.save(key, found)
        self._programs[wanted] = found
        return found

    def _solved(self, wanted: Regime) -> Program | None:
        grid, check = wanted.grid(), wanted.check()
        logs: dict[Point, Log] = {}
        facts: dict[Point, Facts] = {}
        try:
            for point in grid.points:
                log, facts[point] = self._traced(point)
                logs[point] = reduced(log)
                same_structure(logs[grid.points[0]], logs[point])
            program = made(grid, logs, facts)
            for point in (grid.points[0], *([check] if check else ())):
                traced = direct(self._traced(point)[0])
                self._confirmed[wanted, point] = confirm(program, point, traced, self._kernels())
        except (DifferentStructureError, NotPolynomialError, UsageError) as error:
            if check is None:
                raise
            self.progress(f"no program for {wanted}: {error}")
            return None
        return program

    def _kernels(self) -> Any:
        from memplan.planner.trace.kernels import Kernels

        return Kernels(self.target)

    def _traced(self, point: Point) -> tuple[Log, Facts]:
        if point not in self._logs:
            self.progress(f"tracing micro-batch {point[0]}, sequence length {point[1]:,}")
            setup = self.setup.with_(micro_batch=point[0], sequence_length=point[1])
            with telling(f"{point[0]} x {point[1]:,} tokens"):
                self._logs[point] = recorded(self.config, setup, calls=True)
        return self._logs[point]
