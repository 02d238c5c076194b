"""A compiled trace: the events of one structure, each storage's size and shape known at every node of a grid,
and the log that they make at any (B, S) of the structure's regime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from memplan.planner.compiled.nodes import Grid, NotPolynomialError, Point, value
from memplan.planner.trace.events.log import ALLOC, EMPTY, FREE, Log, Mark, Storage
from memplan.planner.trace.events.record import Facts

Shape = tuple[int, ...]
FIXED = (
    "op",
    "module",
    "layer",
    "dtype",
    "moment",
    "born",
    "via",
    "component",
    "name",
    "saved",
    "held",
    "died",
)
"""What of a storage does not depend on sizes: equal at every node."""


class DifferentStructureError(ValueError):
    """Two sizes make different events: they are no instances of one program."""


@dataclass(frozen=True, slots=True)
class Program:
    """`events`: a storage's number at its allocation, ~number at its release, None where the cache is
    emptied. `sizes` and `shapes`: the distinct ones, each with its values at the nodes; a storage has the
    index of its own. Sizes in bytes.
    """

    grid: Grid
    events: tuple[int | None, ...]
    storages: tuple[Storage, ...]  # as at the first node
    size_of: tuple[int, ...]
    shape_of: tuple[int, ...]
    sizes: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[Shape, ...], ...]
    marks: tuple[Mark, ...]
    facts: Facts

    def at(self, point: Point) -> Log:
        """The log of a run at (B, S). NotPolynomialError where a size has no whole value there."""
        weights = self.grid.weights(point)
        sizes = [value(each, weights) for each in self.sizes]
        shapes = [_shape(each, weights) for each in self.shapes]
        storages = [
            replace(storage, nbytes=sizes[size], shape=shapes[shape])
            for storage, size, shape in zip(self.storages, self.size_of, self.shape_of, strict=True)
        ]
        events = [
            (EMPTY, -1, 0)
            if each is None
            else (ALLOC, each, storages[each].nbytes)
            if each >= 0
            else (FREE, ~each, storages[~each].nbytes)
            for each in self.events
        ]
        return Log(events=events, storages=storages, marks=[replace(mark) for mark in self.marks])


def _shape(at_nodes: Sequence[Shape], weights: Any) -> Shape:
    return tuple(value(dims, weights) for dims in zip(*at_nodes, strict=True))


def made(grid: Grid, logs: Mapping[Point, Log], facts: Facts) -> Program:
    """The program of the logs at a grid's points. DifferentStructureError where their events differ."""
    first, *others = (logs[point] for point in grid.points)
    for other in others:
        same_structure(first, other)
    size_of, sizes = _distinct(
        [tuple(each) for each in zip(*(_sizes(logs[p]) for p in grid.points), strict=True)]
    )
    shape_of, shapes = _distinct(
        [tuple(each) for each in zip(*(_shapes(logs[p]) for p in grid.points), strict=True)]
    )
    for alternatives in shapes:
        if len({len(shape) for shape in alternatives}) > 1:
            raise DifferentStructureError("a tensor has another number of dimensions at another size")
    return Program(
        grid,
        tuple(_event(event) for event in first.events),
        tuple(first.storages),
        tuple(size_of),
        tuple(shape_of),
        tuple(sizes),
        tuple(shapes),
        tuple(first.marks),
        facts,
    )


def confirm(program: Program, point: Point, log: Log) -> None:
    """Hold the program against a trace that it was not made from. DifferentStructureError where the events
    differ, NotPolynomialError where a size does.
    """
    found = program.at(point)
    same_structure(found, log)
    for ours, theirs in zip(found.storages, log.storages, strict=True):
        if ours.nbytes != theirs.nbytes:
            raise NotPolynomialError(
                f"{theirs.op} in {theirs.module or 'the step'}: {theirs.nbytes} bytes at {point}, where the "
                f"others give {ours.nbytes}"
            )


def same_structure(one: Log, other: Log) -> None:
    """DifferentStructureError where two logs have other events, or other tensors at the same events."""
    if len(one.events) != len(other.events) or len(one.storages) != len(other.storages):
        raise DifferentStructureError(f"{len(one.events)} and {len(other.events)} events")
    if any(a[:2] != b[:2] for a, b in zip(one.events, other.events, strict=True)):
        raise DifferentStructureError("events in another order")
    if [asdict(mark) for mark in one.marks] != [asdict(mark) for mark in other.marks]:
        raise DifferentStructureError("moments of another length")
    for a, b in zip(one.storages, other.storages, strict=True):
        if any(getattr(a, name) != getattr(b, name) for name in FIXED):
            raise DifferentStructureError(f"{a.op} in {a.module} and {b.op} in {b.module} at the same place")


def _event(event: tuple[str, int, int]) -> int | None:
    kind, number, _ = event
    return number if kind == ALLOC else ~number if kind == FREE else None


def _sizes(log: Log) -> list[int]:
    return [storage.nbytes for storage in log.storages]


def _shapes(log: Log) -> list[Shape]:
    return [storage.shape for storage in log.storages]


def _distinct(values: Sequence[Any]) -> tuple[list[int], list[Any]]:
    """The index of each value among the distinct ones, and those."""
    known: dict[Any, int] = {}
    return [known.setdefault(each, len(known)) for each in values], list(known)
