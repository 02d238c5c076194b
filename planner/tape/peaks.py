"""From a tape's log to the states that can be the peak of each moment.

A state can be the largest only where a birth is followed by a death. Of those, a state is dropped where another one of the same moment is
least as large for every value of the symbols (no coefficient is smaller): what is left is a handful, and the peak is their maximum.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from planner.breakdown import Component
from planner.expr import Expr, Monomial
from planner.rows import SymbolicRow
from planner.tape.tape import Info, Shape, Tape

Terms = dict[Monomial, int]


@dataclass(frozen=True)
class Candidate:
    """One state of a moment: its bytes, and its rows, made when asked for (a plan shows one state of the dozens that can be the peak)."""

    size: Expr
    infos: list[Info]
    alive: dict[int, int]

    @cached_property
    def rows(self) -> tuple[SymbolicRow, ...]:
        return _rows(self.infos, self.alive)


def candidates(tape: Tape, moments: tuple[str, ...]) -> dict[str, list[Candidate]]:
    """The possible peaks of each moment. A moment that is marked several times (gradient accumulation) is one."""
    kept = _positions(tape, moments)
    states = _states(tape, {position: terms for pairs in kept.values() for terms, position in pairs})
    return {moment: [states[position] for _, position in pairs] for moment, pairs in kept.items()}


def _positions(tape: Tape, moments: tuple[str, ...]) -> dict[str, list[tuple[Terms, int]]]:
    """For each moment the states that no other covers: bytes alive, and the position in the log (after that many events)."""
    sizes = [info.size.terms for info in tape.infos]
    kept: dict[str, list[tuple[Terms, int]]] = {moment: [] for moment in moments}
    marks = [*tape.marks, (len(tape.log), "")]
    moment, running, grew = "", dict[Monomial, int](), True
    for position, (index, change) in enumerate([*tape.log, (-1, {})]):
        while marks and marks[0][0] == position:
            if moment in kept and grew:
                _keep(kept[moment], running, position)
            moment, grew = marks.pop(0)[1], True
        if index < 0:
            for each, count in change.items():
                _grow(running, sizes[each], count)
            continue
        if change < 0 and grew and moment in kept:
            _keep(kept[moment], running, position)
        grew = change > 0
        _grow(running, sizes[index], change)
    return kept


def _grow(running: Terms, size: object, count: int) -> None:
    for monomial, coefficient in size.items():  # type: ignore[attr-defined]
        running[monomial] = running.get(monomial, 0) + coefficient * count


def _keep(kept: list[tuple[Terms, int]], running: Terms, position: int) -> None:
    for terms, _ in kept:
        if _covers(terms, running):
            return
    kept[:] = [pair for pair in kept if not _covers(running, pair[0])]
    kept.append((dict(running), position))


def _covers(large: Terms, small: Terms) -> bool:
    for monomial, coefficient in small.items():
        if coefficient > large.get(monomial, 0):
            return False
    return all(coefficient >= 0 or monomial in small for monomial, coefficient in large.items())


def _states(tape: Tape, wanted: dict[int, Terms]) -> dict[int, Candidate]:
    """What is alive after `position` events, for each wanted position with its bytes."""
    states: dict[int, Candidate] = {}
    alive: Counter[int] = Counter()
    for position, (index, change) in enumerate([*tape.log, (-1, {})]):
        if position in wanted:
            now = {index: count for index, count in alive.items() if count}
            size = Expr({monomial: coefficient for monomial, coefficient in wanted[position].items() if coefficient})
            states[position] = Candidate(size, tape.infos, now)
        if index < 0:
            alive.update(change)
        else:
            alive[index] += change
    return states


def _rows(infos: list[Info], alive: dict[int, int]) -> tuple[SymbolicRow, ...]:
    """One row for each kind of buffer; buffers of repeated layers cancel or add up by kind."""
    counts: Counter[tuple[str, Shape, str, str, str]] = Counter()
    sizes: dict[tuple[str, Shape, str, str, str], Expr] = {}
    for index, count in alive.items():
        info = infos[index]
        component = info.component or ("activations" if info.saved_by else "temporaries")
        why = f"saved for the backward of {info.saved_by}" if info.saved_by and not info.component else info.why
        key = (info.name, info.shape, info.dtype, component, why)
        counts[key] += count
        sizes[key] = info.size
    rows = [
        SymbolicRow(
            name,
            shape,
            dtype,
            counts[name, shape, dtype, component, why],
            sizes[name, shape, dtype, component, why] * counts[name, shape, dtype, component, why],
            cast(Component, component),
            why,
        )  # type: ignore[arg-type]
        for name, shape, dtype, component, why in counts
        if counts[name, shape, dtype, component, why]
    ]
    return tuple(rows)
