"""Where a closed library's workspace could matter: what its documented algorithms may take at each call
(Storage.reach), against what is free there below the peak.

An allocation smaller than the gap between a call and the peak cannot move the peak, however large it is. What
it leaves cached can move what is reserved: so the run is replayed again with the whole reach taken and given
back at every call.
"""

from __future__ import annotations

from dataclasses import dataclass

from memplan.planner.allocator.replay import Replay, replay
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.torch_versions import TORCH_VERSIONS
from memplan.planner.tables.units import gib
from memplan.planner.trace.events.log import ALLOC, FREE, Event, Log

LIBRARY = "cuDNN"
TIGHT = 0.005
"""Share of what is reserved by which a workspace may change it, and the prediction is no lower bound."""


@dataclass(frozen=True, slots=True)
class Unseen:
    """Calls of a closed library. `room`: bytes that one may take before it moves the peak, at the call that
    has least beyond its reach; `reach`: what the documented algorithms need there; `module`: whose code calls.
    `reserved`: the most that is reserved, as predicted and with the whole reach taken at every call.
    """

    room: int
    reach: int
    module: str
    reserved: tuple[int, int]

    @property
    def matters(self) -> bool:
        """Whether the documented algorithms can move the peak, or what is reserved."""
        without, taken = self.reserved
        return self.reach > self.room or taken > without * (1 + TIGHT)

    def said(self) -> str:
        """The sentence about it."""
        where = self.module or "a convolution"
        if self.reach > self.room:
            return (
                f"{LIBRARY}'s workspace in {where}: its documented algorithms take up to {gib(self.reach)}, "
                f"from {gib(self.room)} on the peak is higher"
            )
        without, taken = self.reserved
        more = taken - without
        if self.matters:
            return f"{LIBRARY}'s workspace in {where}: with {gib(self.reach)} there {gib(more)} more is reserved"
        beside = f", which adds up to {gib(more)} to what is reserved" if more > 0 else ""
        return (
            f"{LIBRARY}'s workspaces are not seen: the peak is exact unless one takes more than "
            f"{gib(self.room)} in {where} (its documented algorithms: up to {gib(self.reach)}{beside})"
        )


def unseen(log: Log, setup: Setup, run: Replay) -> Unseen | None:
    """What a run's calls of a closed library leave open; None where there are none. One replay more."""
    calls = [storage for storage in log.storages if storage.reach]
    if not calls:
        return None
    peaks = run.peaks()
    nearest = min(calls, key=lambda s: peaks.allocated - run.allocated[s.born] - s.reach)
    taken = replay(
        with_reach(log),
        mode=setup.allocator,
        ties=TORCH_VERSIONS[setup.torch].equal_blocks,
        streams=log.streams,
    )
    return Unseen(
        peaks.allocated - run.allocated[nearest.born],
        nearest.reach,
        nearest.module,
        (peaks.reserved, max(peaks.reserved, max(taken.reserved))),
    )


def with_reach(log: Log) -> list[Event]:
    """The log's events, and at each call of a closed library a workspace as large as its reach."""
    found: list[Event] = []
    number = len(log.storages)
    for event in log.events:
        found.append(event)
        kind, sid, _ = event
        if kind == ALLOC and log.storages[sid].reach:
            found += [(ALLOC, number, log.storages[sid].reach), (FREE, number, log.storages[sid].reach)]
            number += 1
    return found
