"""A tape's log as one step of every layer: each repeated layer's buffers get an identity of their own.

The tape walks a repeated layer once and writes what the others leave behind as one event (tape.py `_jump`).
Here the layer's events are written out as often as it occurs. What a layer frees is one of:
* a buffer of its own, made in the same pass;
* in the backward, one that the same layer's forward made: layers run in reverse there;
* what the layer before it (in the order of the pass) handed on: the walked log frees the previous block's
  buffer in its place, which is of the same kind, since equal layers stand before and after a repeated one;
* what another repeated part of the same layers made (a prefix's keys): layer by layer;
* one for all layers (`Info.once`, and whatever has no counterpart): the last layer of the pass frees it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from memplan.planner.formula.tape.nodes import Info
from memplan.planner.formula.tape.recorder import Region, Span
from memplan.planner.formula.tape.tape import Tape

Kind = tuple[str, object, str]


@dataclass(slots=True)
class Unrolled:
    """One step of every layer. `events`: an id, at its birth, or ~id, at its release, in order; `infos[id]`:
    the tape's description of it; `marks`: (position among the events, moment).
    """

    events: list[int] = field(default_factory=list)
    infos: list[int] = field(default_factory=list)
    marks: list[tuple[int, str]] = field(default_factory=list)


@dataclass(slots=True)
class _Layer:
    """A repeated layer: what of its two passes is its own, and which buffer stands for which one layer later.

    `first`: the buffers that its forward makes are those from `first` to below `last`. `handed`: a buffer
    made before the layer -> the layer's own that the next one finds in its place; `back` likewise for the
    backward pass.
    """

    region: Region
    first: int
    last: int
    back_first: int
    back_last: int
    handed: dict[int, int]
    back: dict[int, int]


def unroll(tape: Tape) -> Unrolled:
    """The events of one step, from the tape's first to the mark `end`, every layer written out."""
    return _Unroller(tape).run()


class _Unroller:
    def __init__(self, tape: Tape) -> None:
        self.tape, self.log, self.infos = tape, tape.log, tape.infos
        self.end = next((position for position, name in tape.marks if name == "end"), len(tape.log))
        self.made = Unrolled()
        self.now: dict[int, int] = {}  # buffer -> the id that it stands for where no layer is repeated
        self.apart: dict[int, list[int]] = {}  # buffer of a repeated layer -> its id in each
        self.together: dict[int, list[int]] = {}  # buffer -> ids that were made at once
        self.alive: list[bool] = []  # by id

    def run(self) -> Unrolled:
        layers = {}
        for region in self.tape.walked:
            layer = self._layer(region)
            for span, forward in ((region.forward, True), (region.backward, False)):
                if span is not None:
                    layers[span.start] = (layer, span, forward)
        marks, position = list(self.tape.marks), 0
        while position < self.end:
            while marks and marks[0][0] <= position:
                self.made.marks.append((len(self.made.events), marks.pop(0)[1]))
            if position in layers:
                layer, span, forward = layers[position]
                (self._forward if forward else self._backward)(layer, span)
                position = span.stop + 1
                continue
            index, change = self.log[position]
            if index >= 0:
                if change > 0:
                    self.now[index] = self._birth(index)
                else:
                    self._death(self.now.get(index))
                    for each in self.together.pop(index, ()):
                        self._death(each)
            elif position in self.tape.dropped:
                self._drop(change)
            else:  # several equal ones at once
                for each, count in change.items():
                    self.together.setdefault(each, []).extend(self._birth(each) for _ in range(count))
            position += 1
        self.made.marks += [(len(self.made.events), name) for _, name in marks]
        return self.made

    # ---- births and deaths ---------------------------------------------------------------------------------

    def _birth(self, index: int) -> int:
        infos = self.made.infos
        made = len(infos)
        infos.append(index)
        self.made.events.append(made)
        self.alive.append(True)
        return made

    def _death(self, which: int | None) -> None:
        if which is not None and self.alive[which]:
            self.alive[which] = False
            self.made.events.append(~which)

    def _drop(self, change: dict[int, int]) -> None:
        for index in change:
            for each in self.apart.get(index, ()):
                self._death(each)

    # ---- layers --------------------------------------------------------------------------------------------

    def _born(self, span: Span | None) -> tuple[int, int]:
        """The buffers that are made in a span: from the first to below the last."""
        if span is None:
            return 0, 0
        made = [index for index, change in self.log[span.start : span.stop] if index >= 0 and change > 0]
        return (min(made), max(made) + 1) if made else (0, 0)

    def _freed(self, span: Span | None) -> list[int]:
        if span is None:
            return []
        return [index for index, change in self.log[span.start : span.stop] if index >= 0 and change < 0]

    def _layer(self, region: Region) -> _Layer:
        first, last = self._born(region.forward)
        back_first, back_last = self._born(region.backward)
        freed, back_freed = self._freed(region.forward), self._freed(region.backward)
        gone = {*freed, *back_freed}
        given = sorted(i for i in gone if i < first and not self.infos[i].once)
        left = [i for i in range(first, last) if i not in gone]
        back_given = [i for i in back_freed if last <= i < back_first]
        back_left = [i for i in range(back_first, back_last) if i not in gone]
        return _Layer(
            region,
            first,
            last,
            back_first,
            back_last,
            _counterparts(self.infos, given, left),
            _counterparts(self.infos, sorted(back_given), back_left),
        )

    def _forward(self, layer: _Layer, span: Span) -> None:
        times, handed, first, last = layer.region.times, layer.handed, layer.first, layer.last
        events = self.log[span.start : span.stop]
        apart: dict[int, list[int]] = defaultdict(list)
        for number in range(times):
            for index, change in events:
                if index < 0:
                    continue
                if change > 0:
                    apart[index].append(self._birth(index))
                elif first <= index < last:
                    self._death(apart[index][number])
                elif number == 0 and index in handed:
                    self._death(self.now.get(index))
                elif index in handed:
                    self._death(apart[handed[index]][number - 1])
                elif len(self.apart.get(index, ())) == times:
                    self._death(self.apart[index][number])
                elif number == times - 1:
                    self._death(self.now.get(index))
        self.apart.update(apart)
        self.now.update((index, ids[-1]) for index, ids in apart.items())

    def _backward(self, layer: _Layer, span: Span) -> None:
        times, first, last = layer.region.times, layer.first, layer.last
        events = self.log[span.start : span.stop]
        before: dict[int, int] = {}
        kept: dict[int, list[int]] = defaultdict(list)
        for number in reversed(range(times)):
            own: dict[int, int] = {}
            for index, change in events:
                if index < 0:
                    continue
                if change > 0:
                    own[index] = self._birth(index)
                    kept[index].append(own[index])
                elif index in own:
                    self._death(own[index])
                elif first <= index < last:
                    self._death(self.apart[index][number])
                elif index in layer.handed:
                    handed = layer.handed[index]
                    self._death(self.apart[handed][number - 1] if number else self.now.get(index))
                elif index in layer.back:
                    self._death(before.get(layer.back[index]) if before else self.now.get(index))
                elif len(self.apart.get(index, ())) == times:
                    self._death(self.apart[index][number])
                elif number == 0:
                    self._death(self.now.get(index))
            before = own
        self.apart.update((index, ids[::-1]) for index, ids in kept.items())
        self.now.update(before)


def _kind(info: Info) -> Kind:
    return info.name, info.shape, info.dtype


def _counterparts(infos: list[Info], given: Iterable[int], left: Iterable[int]) -> dict[int, int]:
    """For each buffer that a layer was given the one of its own that the next layer is given: of the same
    kind, in order, the latest made of each kind last.
    """
    by_kind: dict[Kind, list[int]] = defaultdict(list)
    for index in left:
        by_kind[_kind(infos[index])].append(index)
    wanted: dict[Kind, list[int]] = defaultdict(list)
    for index in given:
        wanted[_kind(infos[index])].append(index)
    found: dict[int, int] = {}
    for kind, indices in wanted.items():
        own = by_kind.get(kind, [])
        found.update(zip(reversed(indices), reversed(own), strict=False))
    return found
