"""From a tape's log to the largest state of each moment: at given sizes (`largest`), or at any
(`candidates`).

A state can be the largest only where a birth is followed by a death. Of those, a state is dropped where
another one of the same moment is least as large for every value of the symbols (no coefficient is smaller):
what is left is a handful, and the peak is their maximum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from memplan.planner.formula.rows import SymbolicRow
from memplan.planner.formula.symbolic.expr import AtomValues, Expr, Monomial, total
from memplan.planner.formula.tape.tape import Info, Shape, Tape
from memplan.planner.tables.components import Component

Terms = dict[Monomial, int]


@dataclass(frozen=True)
class TapePeak:
    """One state of a moment: which buffers are alive; its bytes and its rows are made when asked for."""

    infos: list[Info]
    alive: dict[int, int]

    @cached_property
    def size(self) -> Expr:
        """Bytes that are alive there."""
        return total(self.infos[index].size * count for index, count in self.alive.items())

    @cached_property
    def components(self) -> dict[str, Expr]:
        """Bytes of each component that is there, without making rows."""
        sums: dict[str, Terms] = {}
        for index, count in self.alive.items():
            info = self.infos[index]
            _grow(sums.setdefault(component_of(info), {}), info.size.terms, count)
        return {name: total([Expr(terms)]) for name, terms in sums.items()}

    @cached_property
    def rows(self) -> tuple[SymbolicRow, ...]:
        """Every buffer that is alive there, as a row."""
        return _rows(self.infos, self.alive)


def largest(tape: Tape, moments: tuple[str, ...], values: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """For each moment the bytes of its largest state where the symbols have these values, and how many events
    of the log made it.
    """
    sizes = sizes_at(tape, values)
    changes = (
        sizes[index] * change if index >= 0 else sum([sizes[each] * count for each, count in change.items()])
        for index, change in tape.log
    )
    alive = [0, *accumulate(changes)]  # after so many events
    ends = [position for position, _ in tape.marks[1:]]
    best = dict.fromkeys(moments, (-1, 0))
    for (begin, moment), end in zip(tape.marks, [*ends, len(tape.log)], strict=True):
        if moment in best:
            most = max(alive[begin : end + 1])
            if most > best[moment][0]:
                best[moment] = most, alive.index(most, begin)
    return best


def sizes_at(tape: Tape, values: Mapping[str, int]) -> list[int]:
    """The bytes of each of a tape's buffers where the symbols have these values."""
    atoms = AtomValues(values)
    known: dict[int, int] = {}  # by identity: a tape makes one expression for each shape and dtype
    sizes = []
    for info in tape.infos:
        value = known.get(id(info.size))
        if value is None:
            value = known[id(info.size)] = info.size.evaluate(atoms)
        sizes.append(value)
    return sizes


def candidates(tape: Tape, moments: tuple[str, ...]) -> dict[str, list[TapePeak]]:
    """The possible peaks of each moment. A moment that is marked several times (gradient accumulation) is
    one.
    """
    kept = _positions(tape, moments)
    states = states_after(tape, {position for pairs in kept.values() for _, position in pairs})
    return {moment: [states[position] for _, position in pairs] for moment, pairs in kept.items()}


def _positions(tape: Tape, moments: tuple[str, ...]) -> dict[str, list[tuple[Terms, int]]]:
    """For each moment the states that no other covers: bytes alive, and the position in the log (after that
    many events).
    """
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
    for terms, _ in reversed(kept):  # the latest kept is the likeliest to cover
        if _covers(terms, running):
            return
    kept[:] = [pair for pair in kept if not _covers(running, pair[0])]
    kept.append((dict(running), position))


def _covers(large: Terms, small: Terms) -> bool:
    for monomial, coefficient in small.items():
        if coefficient > large.get(monomial, 0):
            return False
    return all(coefficient >= 0 or monomial in small for monomial, coefficient in large.items())


def states_after(tape: Tape, wanted: set[int]) -> dict[int, TapePeak]:
    """What is alive after so many events of the log, for each wanted number of them."""
    states: dict[int, TapePeak] = {}
    alive: Counter[int] = Counter()
    for position, (index, change) in enumerate([*tape.log, (-1, {})]):
        if position in wanted:
            now = {index: count for index, count in alive.items() if count}
            states[position] = TapePeak(tape.infos, now)
        if index < 0:
            alive.update(change)
        else:
            alive[index] += change
    return states


def component_of(info: Info) -> Component:
    """The component of a buffer (planner/tables/components.py)."""
    return info.component or ("activations" if info.saved_by or info.outlives else "temporaries")


def why_of(info: Info) -> str:
    """Why a buffer is there: what saved it, before what it is."""
    if info.component or not info.saved_by:
        return info.why
    saved = f"saved for the backward of {info.saved_by}"
    return f"{info.why}, {saved}" if info.names_itself else saved


def _rows(infos: list[Info], alive: dict[int, int]) -> tuple[SymbolicRow, ...]:
    """One row for each kind of buffer; buffers of repeated layers cancel or add up by kind."""
    counts: Counter[tuple[str, Shape, str, Component, str]] = Counter()
    sizes: dict[tuple[str, Shape, str, Component, str], Expr] = {}
    for index, count in alive.items():
        info = infos[index]
        kind = (info.name, info.shape, info.dtype, component_of(info), why_of(info))
        counts[kind] += count
        sizes[kind] = info.size
    return tuple(
        SymbolicRow(*kind[:3], count, sizes[kind] * count, *kind[3:])
        for kind, count in counts.items()
        if count
    )
