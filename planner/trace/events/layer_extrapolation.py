"""Depth costs nothing: trace a few layers and synthesize the full event stream, event for event.

Layers of equal structure repeat with a period. Of each long run of repeats three are kept (first, middle,
last), and the middle one stands for all between. Events carry the decoder layer in whose code they happened,
so a stream is made of *sweeps* over the layers (forward, backward, one per list of the optimizer) with events
outside between them; stretching repeats the middle's events with its neighbors shifted. A second trace, one
repeat longer, proves each stretch: the synthesized stream must equal it, else the caller traces at full
depth. Its differences also give the sizes that grow with depth (a stack of all gradient norms).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from memplan.planner.trace.events.layout import (
    COPIES,
    Run,
    kept_layers,
    runs,
    signatures,
    templates,
)
from memplan.planner.trace.events.log import ALLOC, BY_DEPTH, EMPTY, FREE, Event, Log, Mark, Storage

__all__ = [
    "COPIES",
    "NotPeriodic",
    "Run",
    "kept_layers",
    "runs",
    "signatures",
    "templates",
]

Name = tuple[
    int | None, str, int, int
]  # (layer, how that is known, sweep, number among those of its kind): the same at every depth


class NotPeriodic(Exception):
    """The stream does not stretch: trace at full depth."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """Consecutive events in the code of one layer (None: outside the layers)."""

    layer: int | None
    begin: int
    end: int


def _borders(log: Log) -> list[int]:
    return sorted(
        {0, len(log.events), *(mark.begin for mark in log.marks), *(mark.end for mark in log.marks)}
    )


def sweeps_of(log: Log) -> list[list[_Segment]]:
    """The whole stream as sweeps, in order; none crosses the border of a moment."""
    return [sweep for stretch in _segments(log) for sweep in _sweeps(stretch)]


def names_of(log: Log, sweeps: Sequence[list[_Segment]]) -> list[Name]:
    """Each storage's name. Numbers count from the last one back: what a layer hands to its neighbor it makes
    last, and only the outermost layers make more before it (the final norm's gradients are made from the last
    layer's tensors).
    """
    ends = [sweep[-1].end for sweep in sweeps]
    counts: dict[tuple[int | None, str, int], int] = {}
    found: list[Name] = []
    for storage in reversed(log.storages):
        kind = (storage.layer, storage.via, bisect_right(ends, storage.born))
        number = counts.get(kind, 0)
        counts[kind] = number + 1
        found.append((*kind, number))
    return found[::-1]


def _segments(log: Log) -> Iterator[list[_Segment]]:
    """Stretches of segments between the borders of moments."""
    borders = _borders(log)
    for begin, end in zip(borders, borders[1:], strict=False):
        found: list[_Segment] = []
        start = begin
        for index in range(begin + 1, end + 1):
            if index == end or log.layers[index] != log.layers[start]:
                found.append(_Segment(log.layers[start], start, index))
                start = index
        yield _late_frees(log, found)


def _late_frees(log: Log, segments: list[_Segment]) -> list[_Segment]:
    """Outside the layers a free is known by its storage's layer. Where a loop over layers drops a tensor of
    the last round in the midst of the next one, it belongs to that round (more than two at a time are a
    list's).
    """
    found: list[_Segment] = []
    for segment in segments:
        last = log.events[found[-1].begin : found[-1].end] if found else []
        if (
            len(found) > 1
            and found[-2].layer == segment.layer
            and len(last) <= 2
            and all(kind == FREE for kind, _, _ in last)
        ):
            found[-2:] = [_Segment(segment.layer, found[-2].begin, segment.end)]
        else:
            found.append(segment)
    return found


def _sweeps(segments: list[_Segment]) -> Iterator[list[_Segment]]:
    """Groups of segments: one outside the layers, or a sweep over layers in one direction, with what is
    outside between two of them inside.
    """
    index = 0
    while index < len(segments):
        if segments[index].layer is None:
            yield [segments[index]]
            index += 1
            continue
        sweep, direction = [segments[index]], 0
        index += 1
        while index < len(segments):
            ahead = index + (segments[index].layer is None)
            if ahead >= len(segments):
                break
            step = (segments[ahead].layer or 0) - (sweep[-1].layer or 0)
            if step == 0 or (direction and (step > 0) != (direction > 0)):
                break
            if not direction and abs(step) > 1 and _turns(segments[ahead:], step):
                break  # a jump back to where the next sweep starts
            direction = direction or step
            if ahead > index:  # outside between two layers: the earlier layer's tail
                sweep[-1] = _Segment(sweep[-1].layer, sweep[-1].begin, segments[index].end)
            sweep.append(segments[ahead])
            index = ahead + 1
        yield sweep


def _turns(segments: Sequence[_Segment], step: int) -> bool:
    """Whether the layers go on the other way after the first of `segments`."""
    layers = [segment.layer for segment in segments[:3] if segment.layer is not None]
    return len(layers) > 1 and (layers[1] - layers[0] > 0) != (step > 0)


class _Stretch:
    """The full stream in the making; `origins` says which storage of the small log each one is modeled on."""

    def __init__(self, small: Log, stand_ins: Sequence[int], sizes: dict[int, int]) -> None:
        self.small, self.stand_ins, self.sizes = small, stand_ins, sizes
        self.sweeps = sweeps_of(small)
        self.names = names_of(small, self.sweeps)
        self.log = Log(ops=dict(small.ops))
        self.origins: list[int] = []
        self.ids: dict[Name, int] = {}
        self.single = {
            layer: place for place, layer in enumerate(stand_ins) if list(stand_ins).count(layer) == 1
        }
        gaps = [place for place in range(1, len(stand_ins)) if stand_ins[place] != stand_ins[place - 1] + 1]
        self.reach = max(
            (1 + stand_ins[place - 1] - stand_ins[place] for place in gaps), default=1
        )  # the longest period

    def run(self) -> Log:
        edges: dict[int, int] = {0: 0}
        for sweep in self.sweeps:
            edges[sweep[0].begin] = len(self.log.events)
            self._sweep(sweep)
            edges[sweep[-1].end] = len(self.log.events)
        edges.setdefault(len(self.small.events), len(self.log.events))
        self.log.marks = [
            Mark(mark.step, mark.moment, edges[mark.begin], edges[mark.end]) for mark in self.small.marks
        ]
        return self.log

    def _sweep(self, sweep: list[_Segment]) -> None:
        if sweep[0].layer is None:
            self._copy(sweep[0], None)
            return
        segments = {segment.layer: segment for segment in sweep}
        places: Iterator[int] | range = range(len(self.stand_ins))
        if len(sweep) > 1 and (sweep[1].layer or 0) < (sweep[0].layer or 0):
            places = reversed(range(len(self.stand_ins)))
        for place in places:
            segment = segments.get(self.stand_ins[place])
            if segment is not None:
                self._copy(segment, place)

    def _copy(self, segment: _Segment, place: int | None) -> None:
        events, layers, small, log = self.small.events, self.small.layers, self.small.storages, self.log
        for index in range(segment.begin, segment.end):
            kind, sid, nbytes = events[index]
            context = layers[index]
            if kind == EMPTY:
                log.events.append((EMPTY, -1, 0))
                log.layers.append(None)
                continue
            layer, *rest = self.names[sid]
            places = self._places(layer, segment.layer, place)
            if kind == ALLOC:
                name: Name = (places[0], *rest)  # type: ignore[assignment]
                nbytes = self.sizes.get(sid, nbytes)
                new = len(log.storages)
                if name in self.ids:
                    raise NotPeriodic(f"storage {name} is made twice")
                self.ids[name] = new
                self.origins.append(sid)
                log.storages.append(_like(small[sid], new, nbytes, places[0], len(log.events)))
            else:
                new = self._alive([(where, *rest) for where in places])  # type: ignore[misc]
                nbytes = log.storages[new].nbytes
                log.storages[new].died = len(log.events)
            log.events.append((kind, new, nbytes))
            log.layers.append(
                context
                if context is None
                else place
                if place is not None
                else self._places(context, None, None)[0]
            )

    def _alive(self, names: list[Name]) -> int:
        for name in names:
            found = self.ids.get(name)
            if found is not None and self.log.storages[found].died is None:
                return found
        raise NotPeriodic(f"storage {names[0]} is freed before it is made")

    def _places(self, layer: int | None, home: int | None, place: int | None) -> list[int | None]:
        """Where the small model's `layer` may lie when the code of its layer `home`, which met it, runs at
        `place`: as far away as there, or, for a layer that nothing repeats, where that one is (gradients of
        the residual stream live from the last layer to the first).
        """
        if layer is None:
            return [None]
        fixed: list[int | None] = [self.single[layer]] if layer in self.single else []
        if home is None or place is None:
            if not fixed:
                raise NotPeriodic(f"a repeated layer's storage is met outside the layers: {layer}")
            return fixed
        near: list[int | None] = [place + layer - home]
        return near + fixed if abs(layer - home) <= self.reach else fixed + near


def _like(storage: Storage, new: int, nbytes: int, layer: int | None, born: int) -> Storage:
    shape = storage.shape if nbytes == storage.nbytes else (nbytes,)
    return storage.again(new, born, nbytes, shape, layer, storage.call)


def stretch(small: Log, stand_ins: Sequence[int], sizes: dict[int, int] | None = None) -> Log:
    """The stream of a model whose layer p behaves as the small model's layer stand_ins[p]; `sizes` replaces
    the bytes of some of the small log's storages. Raises NotPeriodic.
    """
    return _Stretch(small, stand_ins, sizes or {}).run()


def growth(small: Log, longer: Log, stand_ins: Sequence[int]) -> dict[int, int]:
    """Bytes that storages of the small log (by id) gain with one more repeat, found by comparing the
    stretched stream with the traced one.

    Raises NotPeriodic where they differ in anything but the sizes of storages that do not repeat.
    """
    made = _Stretch(small, stand_ins, {})
    log = made.run()
    calls, mine, theirs = log.storages, canonical(log.events), canonical(longer.events)
    if len(mine) != len(theirs):
        raise NotPeriodic(f"{len(mine)} events synthesized, {len(theirs)} traced")
    gains: dict[int, int] = {}
    for (kind, sid, nbytes), (kind2, sid2, nbytes2) in zip(mine, theirs, strict=True):
        if (kind, sid) != (kind2, sid2):
            raise NotPeriodic(f"storage {sid}, {kind}: the traced stream has {sid2}, {kind2}")
        if kind == ALLOC and calls[sid].call != longer.storages[sid].call:
            small.storages[made.origins[sid]].call = BY_DEPTH
        if kind == ALLOC and nbytes != nbytes2:
            if made.origins.count(made.origins[sid]) > 1:
                raise NotPeriodic(f"a repeated storage changes its size: {nbytes} and {nbytes2}")
            gains[made.origins[sid]] = nbytes2 - nbytes
    return gains


def sizes_at(small: Log, layout: Sequence[Run], gains: Sequence[dict[int, int]]) -> dict[int, int]:
    """Bytes at full depth of the small log's storages that grow: `gains` holds one table for each reducible
    run.
    """
    found: dict[int, int] = {}
    for run, table in zip((r for r in layout if r.reducible), gains, strict=True):
        for sid, gain in table.items():
            found[sid] = found.get(sid, small.storages[sid].nbytes) + gain * (run.repeats - COPIES)
    return found


def canonical(events: Sequence[Event]) -> list[Event]:
    """A log's stream with frees that follow one another in one order, so that equal streams are equal lists.

    (CPython defers deallocation in chains of more than 50 objects, so the order in which a deep graph of
    Python autograd functions dies depends on its depth. The allocator merges freed blocks: without an
    allocation between, their order leaves no trace.)
    """
    found: list[Event] = []
    for frees, group in groupby(events, key=lambda event: event[0] == FREE):
        run = list(group)
        found += sorted(run) if frees else run
    return found
