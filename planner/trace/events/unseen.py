"""Where a closed library's workspace could matter: what its documented algorithms may take at each call
(Storage.reach), against what is free there below the peak.

An allocation smaller than the gap between a call and the peak cannot move the peak, however large it is. What
it leaves cached can move what is reserved: so the run is replayed again with the whole reach taken and given
back at every call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memplan.planner.allocator.replay import Replay, replay
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.torch_versions import TORCH_VERSIONS
from memplan.planner.tables.units import gib
from memplan.planner.trace.events.log import ALLOC, FREE, Event, Log

LIBRARY = "cuDNN"


@dataclass(frozen=True, slots=True)
class Unseen:
    """Calls of a closed library. `room`: bytes that one may take before it moves the peak, at the call that
    has least beyond its reach; `reach`: what the documented algorithms need there; `module`: whose call.
    `reserved`: the most that is reserved, as predicted and with the whole reach taken at every call.
    """

    room: int
    reach: int
    module: str
    reserved: tuple[int, int]

    @property
    def moves_peak(self) -> bool:
        """Whether the documented algorithms can move the peak: the prediction is a lower bound then."""
        return self.reach > self.room

    def said(self) -> str:
        """The sentence about it."""
        where, (without, taken) = self.module or "a convolution", self.reserved
        if self.moves_peak:
            return (
                f"{LIBRARY}'s workspace in {where}: more than {gib(self.room)} is a higher peak, and its "
                f"documented algorithms take up to {gib(self.reach)}"
            )
        more = f", which may add {gib(taken - without)} to what is reserved" if taken > without else ""
        return (
            f"{LIBRARY}'s workspaces are not seen: the peak is exact unless one takes more than "
            f"{gib(self.room)} in {where} (its documented algorithms: up to {gib(self.reach)}{more})"
        )

    def to_document(self) -> dict[str, Any]:
        """It as JSON has it, in bytes."""
        without, taken = self.reserved
        return {
            "name": LIBRARY,
            "module": self.module,
            "room_bytes": self.room,
            "reach_bytes": self.reach,
            "reserved_share": taken / without - 1,
        }


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
