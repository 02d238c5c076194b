"""A sequence of allocations and frees, replayed through the CUDA caching allocator: allocated and reserved
bytes after each.

Pure Python, no torch; `planner/allocator/native.py` has the allocator's rules and where they come from.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from memplan.planner.allocator.expandable import Expandable
from memplan.planner.allocator.native import (
    SMALL_SEGMENT,
    Block,
    Native,
    OutOfMemory,
    Pool,
    Ties,
    Undecided,
    round_size,
)

Mode = Literal["native", "expandable"]
Streams = Mapping[
    int, str
]  # storage id -> the stream that asks for it, where that is not the one that computes
Event = tuple[str, int, int]  # ("alloc" | "free" | "empty_cache", storage id, bytes requested)

MODES: dict[str, type[Native]] = {"native": Native, "expandable": Expandable}
EMPTY = Block(0, 0, Pool(True))
PRECISION = (
    4096  # the search for the smallest capacity ends within this fraction of it, or one segment of 2 MiB
)


@dataclass(frozen=True, slots=True)
class Peaks:
    """The largest allocated and reserved bytes over a range of events, and the event after which allocated
    was largest.
    """

    allocated: int
    reserved: int
    index: int


@dataclass(slots=True)
class Replay:
    """What the allocator did: counters after each event (bytes), and what each storage's block cost.

    `block_bytes[id]` is the size of the block that served the storage: the request rounded up, plus what was
    not worth splitting off. `oom` is the position of the request that failed (the arrays end before it), None
    where every request was served; `needed` is the capacity in bytes that would have let that request grow.
    """

    allocated: array[int] = field(default_factory=lambda: array("q"))
    reserved: array[int] = field(default_factory=lambda: array("q"))
    block_bytes: dict[int, int] = field(default_factory=dict)
    retries: int = 0
    oom: int | None = None
    needed: int = 0

    def peaks(self, start: int = 0, stop: int | None = None) -> Peaks:
        """Peaks over events [start, stop), what was there before `start` included, as after
        `reset_peak_memory_stats`.

        `index` is -1 where nothing was allocated before or in the range.
        """
        stop = len(self.allocated) if stop is None else min(stop, len(self.allocated))
        first = max(0, start - 1)
        if stop <= first:
            return Peaks(0, 0, -1)
        window = self.allocated[first:stop]
        highest = max(window)
        return Peaks(highest, max(self.reserved[first:stop]), first + window.index(highest))


class RunningReplay:
    """A replay under way: `run` takes it further, `fork` makes another that goes on from where this one
    is.
    """

    def __init__(
        self,
        mode: Mode = "native",
        capacity: int | None = None,
        fraction: bool = False,
        ties: Ties = "address",
        streams: Streams = MappingProxyType({}),
    ) -> None:
        self.allocator, self.streams = MODES[mode](capacity, fraction, ties), streams
        self.live: dict[int, Block] = {}
        self.current = 0  # allocated bytes
        self.begun = 0  # events that were served before a fork
        self.result = Replay()

    @property
    def position(self) -> int:
        """How many events have been served."""
        return self.begun + len(self.result.allocated)

    def copy(self, capacity: int) -> RunningReplay:
        """A course in the same state, under a capacity of its own in bytes; its `result` begins here."""
        other = RunningReplay.__new__(RunningReplay)
        other.streams = self.streams
        other.allocator, made = self.allocator.copy(self.live.values(), capacity)
        other.live = {key: made[block] for key, block in self.live.items()}
        other.current, other.begun, other.result = self.current, self.position, Replay()
        return other

    def run(self, events: Iterable[Event]) -> Replay:
        """Serve these events, which follow those already served, up to the first that does not fit; what has
        been done so far.

        Raises KeyError and ValueError as `replay`; Undecided, the state as before the event, where a range of
        capacities is followed.
        """
        result, live, allocator, current = self.result, self.live, self.allocator, self.current
        allocate, release = allocator.allocate, allocator.release
        block_bytes, stream_of = result.block_bytes, self.streams.get
        add_allocated, add_reserved = result.allocated.append, result.reserved.append
        try:
            for kind, key, nbytes in events:
                if kind == "alloc":
                    if key in live:
                        raise ValueError(f"storage {key} is allocated twice (event {self.position})")
                    block = (
                        allocate(nbytes, stream_of(key, "")) if nbytes else EMPTY
                    )  # an empty storage asks for nothing
                    live[key] = block
                    block_bytes[key] = block.size
                    current += block.size
                elif kind == "free":
                    block = live.pop(key)
                    current -= block.size
                    if block.size:
                        release(block)
                elif kind == "empty_cache":
                    allocator.empty_cache()
                else:
                    raise KeyError(kind)
                add_allocated(current)
                add_reserved(allocator.reserved)
        except OutOfMemory as error:
            result.oom, result.needed = self.position, error.needed
        finally:
            self.current = current
        result.retries = allocator.retries
        return result


def replay(
    events: Iterable[Event],
    *,
    mode: Mode = "native",
    capacity: int | None = None,
    fraction: bool = False,
    ties: Ties = "address",
    streams: Streams = MappingProxyType({}),
) -> Replay:
    """Replay events in order under a capacity in bytes on what is reserved (None: no bound).

    `fraction` says that the capacity was set by `set_per_process_memory_fraction` rather than by the GPU's
    end: expandable mode then also refuses a request whose whole segment would not fit, although less of it
    would have to be mapped.

    An event is (kind, storage id, bytes): "alloc", "free" (its bytes are ignored), or "empty_cache" (id and
    bytes ignored); `streams` has the ids of tensors that are not of the stream that computes. Ends at the
    first request that does not fit after release-and-retry. Raises KeyError for a free of an id that is not
    alive and for an unknown kind or mode, ValueError for an id allocated twice.
    """
    return RunningReplay(mode, capacity, fraction, ties, streams).run(events)


def smallest_capacity(
    events: Sequence[Event],
    mode: Mode = "native",
    unbounded: Replay | None = None,
    ties: Ties = "address",
    streams: Streams = MappingProxyType({}),
) -> int:
    """The smallest capacity in bytes, a multiple of 2 MiB, under which every request is served, with
    release-and-retry.

    The boundary that a bisection finds: this capacity survives, and one smaller by 2 MiB (by 1/4096 beyond 8
    GiB) does not. Best fit is a heuristic, so a still smaller one may survive by luck; none below the largest
    sum of live requests can. 0 for no allocation at all. `unbounded` is the replay of the same events without
    a capacity, where the caller has it.
    """
    unit = SMALL_SEGMENT
    unbounded = unbounded or replay(events, mode=mode, ties=ties, streams=streams)
    if not unbounded.allocated:
        return 0
    live = most = 0
    sizes: dict[int, int] = {}
    for kind, key, nbytes in events:
        if kind == "alloc":
            sizes[key] = round_size(nbytes) if nbytes else 0
            live += sizes[key]
            most = max(most, live)
        elif kind == "free":
            live -= sizes.pop(key)
    failed, survives = (most - 1) // unit, -(-max(unbounded.reserved) // unit)
    # `failed` did fail; up to here the request that failed last would lack room, if releases changed nothing
    # before it
    lacking = failed
    together = RunningReplay(
        mode, ties=ties, streams=streams
    )  # as far as all capacities still in question go the same way
    width = 0
    while survives - failed > max(1, survives // PRECISION):
        slow = survives - failed > width // 2 > 0  # the guess did not halve what is left: halve it
        width = survives - failed
        middle = (
            (survives + failed) // 2
            if slow
            else survives - 1
            if survives - lacking <= 1
            else (survives + lacking) // 2
        )
        together.allocator.lower_bound, together.allocator.capacity = (
            (failed + 1) * unit,
            (survives - 1) * unit,
        )
        with suppress(Undecided):
            together.run(events[together.position :])
        tried = together.copy(middle * unit).run(events[together.position :])
        if tried.oom is None:  # what it reserved at most is enough for the same course
            survives = max(failed + 1, min(middle, -(-max(tried.reserved, default=0) // unit)))
            lacking = lacking if lacking < survives - 1 else failed
        else:
            failed = middle
            lacking = min(max(failed, -(-tried.needed // unit) - 1), survives - 1)
    return survives * unit
