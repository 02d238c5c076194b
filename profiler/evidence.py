"""From what a run left (the allocator's history and counters) to its moments, peaks and components. Pure
data, no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memplan.planner.allocator.replay import replay
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.components import STEP_MOMENTS
from memplan.planner.tables.errors import UsageError, shorten
from memplan.planner.tables.torch_versions import TORCH_VERSIONS
from memplan.planner.tables.units import parse_size
from memplan.profiler.align import Step, align, measured_step
from memplan.profiler.history import (
    LOADED,
    OOM,
    Block,
    History,
    Span,
    blocks_of,
    components_at,
    highest,
    levels,
    own,
    storage_events,
)
from memplan.profiler.record import Failure, MeasuredMoment, MeasuredPeak

Counters = Mapping[str, int]
_OOM = (
    "OutOfMemoryError",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "not enough memory",
)
_ASKED = re.compile(r"[Tt]ried to allocate ([0-9.]+ ?(?:bytes|[KMGT]iB))")
_FREE = re.compile(r"of which ([0-9.]+ ?(?:bytes|[KMGT]iB)) is free")


@dataclass(frozen=True)
class Evidence:
    """A run's raw material. `counters`: (step, moment, the device's counters at that moment's end), empty on
    CPU; step -1 is the load.
    """

    device: str
    setup: Setup
    history: History
    counters: Sequence[tuple[int, str, Counters]]
    context_bytes: int | None
    instrumented: int

    def without_history(self) -> Evidence:
        """The counters alone: every peak, no components."""
        return replace(self, history=History())

    def alignment(self, predicted: Step | None) -> dict[str, Any] | None:
        """The instrumented step against the predicted one; None where either is missing."""
        if predicted is None or self.history.cut:
            return None
        measured = measured_step(self.history, self.instrumented)
        return align(predicted, measured) if measured.moments else None

    def extra(self) -> dict[str, Any]:
        """What a record keeps beyond the contract: every step's counters, and how complete the history is."""
        steps = [{"step": step, "moment": moment, **counters} for step, moment, counters in self.counters]
        history = {
            "events": len(self.history.events),
            "cut": self.history.cut,
            "frees_unknown": self.history.frees_unknown,
        }
        return {"history": history, **({"counters": steps} if steps else {})}


def measured_moments(
    evidence: Evidence,
) -> tuple[tuple[MeasuredMoment, ...], MeasuredPeak | None, MeasuredPeak | None, list[str]]:
    """(moments, overall peak, steady step's peak, notes). Moments are the instrumented step's, as the trace
    engine's are its second's.
    """
    return (_from_counters if evidence.counters else _from_history)(evidence)


def _ordered(names: Mapping[str, Any]) -> list[str]:
    return [name for name in STEP_MOMENTS if name in names] + [
        name for name in names if name not in STEP_MOMENTS
    ]


def _from_history(
    evidence: Evidence,
) -> tuple[tuple[MeasuredMoment, ...], MeasuredPeak | None, MeasuredPeak | None, list[str]]:
    """CPU: every number is read from the allocator's events."""
    history = evidence.history
    if not any(mark.label == LOADED for mark in history.marks):
        return (), None, None, []
    running, blocks = levels(history.events), blocks_of(history.events)
    own(history, blocks)
    loaded = history.position(LOADED)
    places: dict[str, tuple[int, int]] = {
        "load_peak": highest(running, 0, loaded),
        "load": (running[loaded - 1] if loaded else 0, loaded),
    }
    steady: dict[str, tuple[int, int]] = {}
    for span in _of_step(history.spans(), evidence.instrumented):
        found = highest(running, span.begin, span.end)
        steady[span.moment] = max(steady.get(span.moment, (-1, 0)), found)
    best, position = highest(running, 0, len(running))
    where = next((span.moment for span in history.spans() if span.begin < position <= span.end), "load_peak")
    peak = MeasuredPeak(where, best)
    step_peak = None
    if steady:
        name = max(steady, key=lambda moment: steady[moment][0])
        step_peak = MeasuredPeak(name, steady[name][0])
        if where in steady and best > steady[where][0]:
            steady[where] = (best, position)  # the run's peak lay in an earlier step's moment of that name
    places.update({name: steady[name] for name in _ordered(steady)})
    moments = tuple(
        MeasuredMoment(name, level, None, components_at(blocks, place))
        for name, (level, place) in places.items()
    )
    return moments, peak if steady else None, step_peak, []


def _steady(evidence: Evidence) -> dict[str, Counters]:
    """The counters of each moment of the instrumented step, those of its highest peak."""
    steady: dict[str, Counters] = {}
    for step, name, counters in evidence.counters:
        highest = steady.get(name, {}).get("allocated_peak", -1)
        if step == evidence.instrumented and counters["allocated_peak"] >= highest:
            steady[name] = counters
    return steady


def _from_counters(
    evidence: Evidence,
) -> tuple[tuple[MeasuredMoment, ...], MeasuredPeak | None, MeasuredPeak | None, list[str]]:
    """CUDA: peaks from the allocator's counters, components from its history at the place of the peak."""
    load = next((counters for step, _, counters in evidence.counters if step < 0), None)
    if load is None:
        return (), None, None, []
    steady = _steady(evidence)
    step, where, top = max(evidence.counters, key=lambda row: row[2]["allocated_peak"])
    rows: list[tuple[int, str, int, Counters]] = [
        (-1, "load_peak", load["allocated_peak"], load),
        (-1, "load", load["allocated"], load),
    ]
    before = 0 <= step < evidence.instrumented  # the run's peak lay in an earlier step
    for name in _ordered(steady):
        number, chosen = evidence.instrumented, steady[name]
        if before and name == where and top["allocated_peak"] > chosen["allocated_peak"]:
            number, chosen = step, top
        rows.append((number, name, chosen["allocated_peak"], chosen))
    place = _Places(evidence)
    moments = []
    for number, name, allocated, counters in rows:
        reserved = counters["reserved"] if name == "load" else counters["reserved_peak"]
        components = place.components(number, name, allocated)
        moments.append(
            MeasuredMoment(
                name, allocated, reserved, components, counters["requested_peak"], counters["active_peak"]
            )
        )
    if not steady:
        return tuple(moments), None, None, place.notes
    reserved = max(counters["reserved_peak"] for _, _, counters in evidence.counters)
    peak = MeasuredPeak(
        "load_peak" if step < 0 else where, top["allocated_peak"], reserved, evidence.context_bytes
    )
    name = max(steady, key=lambda moment: steady[moment]["allocated_peak"])
    step_reserved = max(counters["reserved_peak"] for counters in steady.values())
    return (
        tuple(moments),
        peak,
        MeasuredPeak(name, steady[name]["allocated_peak"], step_reserved, evidence.context_bytes),
        place.notes,
    )


class _Places:
    """Where in the history each moment's peak lies, and what was there: block sizes from a replay of the
    history's own requests.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.notes: list[str] = []
        self._evidence = evidence
        history = evidence.history
        self._blocks: list[Block] = blocks_of(history.events)
        self._running: list[int] = []
        self._charged: dict[int, int] = {}
        if not history.events or history.cut:
            return
        own(history, self._blocks)
        events = storage_events(history.events, self._blocks)
        replayed = replay(
            events,
            mode=evidence.setup.allocator,
            ties=TORCH_VERSIONS[evidence.setup.torch].equal_blocks,
        )
        self._charged = replayed.block_bytes
        levels_replayed = iter(replayed.allocated)
        known = {block.born for block in self._blocks} | {block.died for block in self._blocks}
        level = 0
        for index in range(len(history.events)):
            if index in known:
                level = next(levels_replayed, level)
            self._running.append(level)

    def components(self, step: int, name: str, allocated: int) -> dict[str, int] | None:
        """Components at a moment's peak, adding up to `allocated`; what no replay explains is unattributed.
        None without history.
        """
        if not self._running:
            return None
        place = self._place(step, name)
        if place is None:
            return None
        totals = components_at(self._blocks, place, self._charged)
        rest = allocated - sum(totals.values())
        if rest:
            self.notes.append(
                f"{name}: the replayed history holds {-rest:+d} bytes against the allocator's counter"
            )
        if totals["unattributed"] + rest < 0:
            return None
        totals["unattributed"] += rest
        return totals

    def _place(self, step: int, name: str) -> int | None:
        history = self._evidence.history
        try:
            loaded = history.position(LOADED)
        except KeyError:
            return None
        if name == "load":
            return loaded
        if name == "load_peak":
            return highest(self._running, 0, loaded)[1]
        spans = [span for span in _of_step(history.spans(), step) if span.moment == name]
        return max((highest(self._running, span.begin, span.end) for span in spans), default=(0, None))[1]


def _of_step(spans: Sequence[Span], step: int) -> list[Span]:
    return [span for span in spans if span.step == step]


def failure_of(error: BaseException, moment: str) -> Failure:
    """A library's error as a record keeps it; running out of memory is told from the rest by the sentences
    that torch uses for it.
    """
    text = f"{type(error).__name__}: {error}"
    if not any(sign in text for sign in _OOM):
        return Failure("exception", shorten(text, 900), moment)
    return Failure("oom", shorten(text, 900), moment, _size(_ASKED, text), _size(_FREE, text))


def completed(failure: Failure, history: History, counters: Counters | None) -> Failure:
    """The failure with exact numbers: what the allocator's own history noted of the request, and what the
    process held.
    """
    refused = next((event for event in reversed(history.events) if event.kind == OOM), None)
    if failure.kind == "oom" and refused is not None:
        failure = replace(failure, requested_bytes=refused.nbytes, free_bytes=refused.address)
    if counters is not None:
        failure = replace(failure, allocated_bytes=counters["allocated"], reserved_bytes=counters["reserved"])
    return failure


def _size(pattern: re.Pattern[str], text: str) -> int | None:
    match = pattern.search(text)
    if match is None:
        return None
    try:
        return parse_size(match.group(1).replace("bytes", "B"))
    except UsageError:
        return None
