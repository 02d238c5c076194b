"""A compiled trace: the events of one structure, each storage's size and shape known at every node of a grid,
the calls of kernels whose rules say what else they take, and the log that these make at any (B, S) of the
structure's regime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from operator import attrgetter
from typing import Any

from memplan.planner.compiled.nodes import Grid, NotPolynomialError, Point, value
from memplan.planner.trace.events.log import ALLOC, EMPTY, FREE, Log, Mark, Storage
from memplan.planner.trace.events.record import Facts

Numbers = tuple[int, ...]
fixed = attrgetter(
    "op", "module", "layer", "dtype", "moment", "via", "component", "name", "saved", "held", "stream"
)
"""What of a storage does not depend on sizes: equal at every node."""


class DifferentStructureError(ValueError):
    """Two sizes make different events: they are no instances of one program."""


@dataclass(frozen=True, slots=True)
class Program:
    """`events`: a storage's number at its allocation, ~number at its release, None where the cache is
    emptied. `sizes` and `shapes`: the distinct ones, each with its values at the nodes; a storage has the
    index of its own. Sizes in bytes. `calls`: the storages that stand for a call (trace/calls.py), each with
    the index of its op and template and of its numbers. `host`: bytes on the host at each node.
    """

    grid: Grid
    events: tuple[int | None, ...]
    storages: tuple[Storage, ...]  # as at the first node
    size_of: tuple[int, ...]
    shape_of: tuple[int, ...]
    sizes: tuple[Numbers, ...]
    shapes: tuple[tuple[Numbers, ...], ...]
    calls: Mapping[int, tuple[int, int]]
    templates: tuple[tuple[Any, ...], ...]
    numbers: tuple[tuple[Numbers, ...], ...]
    marks: tuple[Mark, ...]
    facts: Facts
    host: Numbers

    def at(self, point: Point, kernels: Any) -> Log:
        """The log of a run at (B, S), with what `kernels` (trace/kernels.py) say of its calls.
        NotPolynomialError where a size has no whole value there.
        """
        weights = self.grid.weights(point)
        sizes = [value(each, weights) for each in self.sizes]
        shapes = [_values(each, weights) for each in self.shapes]
        return expanded(self, sizes, shapes, self._workspaces(weights, kernels))

    def facts_at(self, point: Point) -> Facts:
        """The model's counts, and what a run at (B, S) keeps on the host."""
        return replace(self.facts, host_bytes=value(self.host, self.grid.weights(point)))

    def _workspaces(self, weights: Sequence[Fraction], kernels: Any) -> dict[int, list[Any]]:
        from memplan.planner.trace.calls import Call

        numbers = [_values(each, weights) for each in self.numbers]
        known: dict[tuple[int, int], list[Any]] = {}
        for key in self.calls.values():
            if key not in known:
                op, template = self.templates[key[0]]
                known[key] = Call(op, template, numbers[key[1]]).workspaces(kernels)
        return {storage: known[key] for storage, key in self.calls.items()}


def _values(at_nodes: Sequence[Numbers], weights: Sequence[Fraction]) -> Numbers:
    return tuple(value(each, weights) for each in zip(*at_nodes, strict=True))


def expanded(
    program: Program,
    sizes: Sequence[int],
    shapes: Sequence[Numbers],
    workspaces: Mapping[int, Sequence[Any]],
) -> Log:
    """The log of a program's events at one size, given its distinct sizes and shapes there: each call's
    workspaces in its place.
    """
    log, storages = Log(), program.storages
    numbers: dict[int, int] = {}  # of a program's storages in the log
    open_calls: dict[int, list[tuple[int, Any]]] = {}
    edges = [0]

    def make(number: int, nbytes: int, shape: Numbers) -> int:
        storage, made = storages[number], len(log.storages)
        log.storages.append(storage.again(made, len(log.events), nbytes, shape, storage.layer))
        log.events.append((ALLOC, made, nbytes))
        return made

    def free(number: int) -> None:
        log.storages[number].died = len(log.events)
        log.events.append((FREE, number, log.storages[number].nbytes))

    def take(call: int, before: bool) -> list[tuple[int, Any]]:
        taken = [(make(call, w.nbytes, (w.nbytes,)), w) for w in workspaces[call] if w.before is before]
        for number, w in taken:
            log.storages[number].op = log.storages[number].name = w.name
        return taken

    for event in program.events:
        if event is None:
            log.events.append((EMPTY, -1, 0))
        elif event >= 0 and event in workspaces:
            open_calls[event] = take(event, True)
        elif event >= 0:
            numbers[event] = make(event, sizes[program.size_of[event]], shapes[program.shape_of[event]])
        elif ~event in workspaces:
            made = open_calls.pop(~event) + take(~event, False)
            for number, _ in sorted(reversed(made), key=lambda each: each[1].last):
                free(number)
        else:
            free(numbers[~event])
        edges.append(len(log.events))
    log.marks = [replace(mark, begin=edges[mark.begin], end=edges[mark.end]) for mark in program.marks]
    return log


def made(grid: Grid, logs: Mapping[Point, Log], facts: Mapping[Point, Facts]) -> Program:
    """The program of the logs at a grid's points. DifferentStructureError where their events differ."""
    first, *others = (logs[point] for point in grid.points)
    for other in others:
        same_structure(first, other)
    nodes = [logs[point].storages for point in grid.points]
    size_of, sizes = _distinct([tuple(s.nbytes for s in each) for each in zip(*nodes, strict=True)])
    shape_of, shapes = _distinct([tuple(s.shape for s in each) for each in zip(*nodes, strict=True)])
    for alternatives in shapes:
        if len({len(shape) for shape in alternatives}) > 1:
            raise DifferentStructureError("a tensor has another number of dimensions at another size")
    calls = [
        tuple(s.call for s in each) for each in zip(*nodes, strict=True) if hasattr(each[0].call, "numbers")
    ]
    template_of, templates = _distinct([(each[0].op, each[0].template) for each in calls])
    numbers_of, numbers = _distinct([tuple(call.numbers for call in each) for each in calls])
    places = [storage.id for storage in first.storages if hasattr(storage.call, "numbers")]
    return Program(
        grid,
        tuple(_event(event) for event in first.events),
        tuple(s.again(s.id, s.born, s.nbytes, s.shape, s.layer) for s in first.storages),
        tuple(size_of),
        tuple(shape_of),
        tuple(sizes),
        tuple(shapes),
        dict(zip(places, zip(template_of, numbers_of, strict=True), strict=True)),
        tuple(templates),
        tuple(numbers),
        tuple(first.marks),
        facts[grid.points[0]],
        tuple(facts[point].host_bytes for point in grid.points),
    )


def confirm(program: Program, point: Point, log: Log, kernels: Any) -> Log:
    """What the program says at a point, held against a trace. DifferentStructureError where the events
    differ, NotPolynomialError where a size does.
    """
    found = program.at(point, kernels)
    same_structure(found, log)
    for ours, theirs in zip(found.storages, log.storages, strict=True):
        if ours.nbytes != theirs.nbytes:
            raise NotPolynomialError(
                f"{theirs.op} in {theirs.module or 'the step'}: {theirs.nbytes} bytes at {point}, where the "
                f"others give {ours.nbytes}"
            )
    return found


def same_structure(one: Log, other: Log) -> None:
    """DifferentStructureError where two logs have other events, or other tensors at the same events."""
    for a, b in zip(one.storages, other.storages, strict=False):
        if fixed(a) != fixed(b) or _form(a) != _form(b):
            raise DifferentStructureError(f"{a.op} in {a.module} and {b.op} in {b.module} at the same place")
    if len(one.events) != len(other.events) or len(one.storages) != len(other.storages):
        raise DifferentStructureError(f"{len(one.events)} and {len(other.events)} events")
    if any(a[:2] != b[:2] for a, b in zip(one.events, other.events, strict=True)):
        raise DifferentStructureError("events in another order")
    if [asdict(mark) for mark in one.marks] != [asdict(mark) for mark in other.marks]:
        raise DifferentStructureError("moments of another length")


def _form(storage: Storage) -> Any:
    """A call without its numbers, and how many there are."""
    call = storage.call
    if call is None:
        return None
    return (call.op, call.template, len(call.numbers)) if hasattr(call, "numbers") else call


def _event(event: tuple[str, int, int]) -> int | None:
    kind, number, _ = event
    return number if kind == ALLOC else ~number if kind == FREE else None


def _distinct(values: Sequence[Any]) -> tuple[list[int], list[Any]]:
    """The index of each value among the distinct ones, and those."""
    known: dict[Any, int] = {}
    return [known.setdefault(each, len(known)) for each in values], list(known)
