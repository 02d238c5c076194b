"""The native allocator in one loop: what is allocated and reserved at most, and whether a capacity survives.

The same rules, in the same order of addresses, as `planner/allocator/native.py`, which says where they come
from; a test compares the two. What is not asked here is what it did at each event, and for each tensor: so a
run of 60,000 events takes less than a tenth of a second.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

from memplan.planner.allocator.native import (
    LARGE_ROUND,
    SMALL_LIMIT,
    SMALL_SEGMENT,
    OutOfMemory,
    Ties,
    round_size,
    segment_size,
)
from memplan.planner.allocator.replay import PRECISION, Streams

EMPTY_CACHE = 1 << 60
"""What stands among events where the cache is given back (`torch.cuda.empty_cache`)."""
_SHIFT = 48
_HIGHEST = ((1 << _SHIFT) - 1) // LARGE_ROUND * LARGE_ROUND
_KEY, _SIZE, _BEFORE, _AFTER, _TIE, _KEYS, _BLOCKS, _ADDRESS = range(8)
Block = list[Any]
"""A block is a list, quick to make: its key among the free ones (0: in use), its size, its neighbors, what
decides between equal sizes, its pool's two parts, its address. Beside the first and the last of a segment
stands an edge, which is never free.
"""
Pool = tuple[list[int], dict[int, Block]]


class Quick:
    """The allocator's state: `allocated` and `reserved` bytes now, and how often it gave its cache back for
    want of room. Free blocks of each pool by their keys in best-fit order: by size, then `ties`.
    """

    def __init__(self, capacity: int = 1 << 62, ties: Ties = "address") -> None:
        self.capacity = capacity
        self._by_creation, self._upwards, self._created = ties == "creation", ties == "segment", 0
        self.allocated = self.reserved = self.releases = 0
        self._end = 0 if self._upwards else _HIGHEST
        self._pools: dict[str, tuple[Pool, Pool]] = {}  # the small and the large one of each stream
        self._edge: Block = [0, 0, None, None, 0, None, None, 0]
        self._live: list[Block | None] = []

    def _of(self, stream: str) -> tuple[Pool, Pool]:
        return self._pools.setdefault(stream, (([], {}), ([], {})))

    def run(
        self, events: Sequence[int], sizes: Sequence[int], streams: Streams | None = None
    ) -> tuple[int, int]:
        """(most allocated, most reserved) bytes over these events, which go on from those before. An event is
        an id at its birth, ~id at its release, or EMPTY_CACHE; `sizes[id]`: bytes asked for;
        `streams`: the ids that another stream than the one that computes asks for.

        Raises OutOfMemory where a request does not fit after the cache was released; nothing may follow.
        """
        live = self._live
        live.extend([None] * (len(sizes) - len(live)))
        own = self._of("")
        allocated, reserved = self.allocated, self.reserved
        most, most_reserved = allocated, reserved
        by_creation, created = self._by_creation, self._created
        find, limit = bisect_left, SMALL_LIMIT
        for event in events:
            if event >= 0:
                if event == EMPTY_CACHE:
                    reserved -= self._empty_cache()
                    continue
                size = (sizes[event] + 511) & ~511
                if not size:  # an empty storage asks for nothing
                    continue
                pools = self._of(streams[event]) if streams and event in streams else own
                if size <= limit:
                    (keys, blocks), unsplit = pools[0], 0
                else:
                    (keys, blocks), unsplit = pools[1], limit
                place = find(keys, size << _SHIFT)
                if place < len(keys):
                    block = blocks.pop(keys.pop(place))
                    block[_KEY] = 0
                else:
                    self.reserved = reserved
                    block = self._grow(size, keys, blocks, created)
                    created += 1
                    reserved = self.reserved
                    if reserved > most_reserved:
                        most_reserved = reserved
                rest = block[_SIZE] - size
                if rest > unsplit:
                    _, _, _, after, tie, _, _, address = block
                    address += size
                    if by_creation:  # the request gets a new object, the remainder keeps the old one
                        block[_TIE] = created
                        created += 1
                    else:
                        tie = address
                    key = rest << _SHIFT | tie
                    cut: Block = [key, rest, block, after, tie, keys, blocks, address]
                    after[_BEFORE] = block[_AFTER] = blocks[key] = cut
                    block[_SIZE] = size
                    insort(keys, key)
                    allocated += size
                else:
                    allocated += block[_SIZE]
                live[event] = block
                if allocated > most:
                    most = allocated
            else:
                found = live[~event]
                if found is None:
                    continue
                live[~event] = None
                block = found
                _, size, before, after, tie, keys, blocks, _ = block
                allocated -= size
                key = before[_KEY]
                if key:
                    del keys[find(keys, key)], blocks[key]
                    size += before[_SIZE]
                    before[_AFTER] = after
                    after[_BEFORE] = before
                    if by_creation:  # the object of the block being freed stays
                        before[_TIE] = tie
                    else:
                        tie = before[_TIE]
                    block = before
                key = after[_KEY]
                if key:
                    del keys[find(keys, key)], blocks[key]
                    size += after[_SIZE]
                    block[_AFTER] = beyond = after[_AFTER]
                    beyond[_BEFORE] = block
                block[_SIZE] = size
                block[_KEY] = key = size << _SHIFT | tie
                insort(keys, key)
                blocks[key] = block
        self.allocated, self.reserved, self._created = allocated, reserved, created
        return most, most_reserved

    def hand_on(self, left: Sequence[int], given: Sequence[int]) -> None:
        """From now on the tensors that `left` names are those that `given` names; all other ids are free to
        be used again, their tensors stay for good.
        """
        live, found = self._live, [self._live[each] for each in left]
        live[:] = [None] * max(len(live), *(each + 1 for each in given)) if given else []
        for each, block in zip(given, found, strict=True):
            live[each] = block

    def _grow(self, size: int, keys: list[int], blocks: dict[int, Block], created: int) -> Block:
        """A new segment's block, after the cache was released if need be; raises OutOfMemory."""
        segment = segment_size(size)
        if self.reserved + segment > self.capacity:
            self.reserved -= self._empty_cache()
            self.releases += 1
            if self.reserved + segment > self.capacity:
                raise OutOfMemory(self.reserved + segment)
        self.reserved += segment
        address = self._end if self._upwards else self._end - segment
        self._end = address + segment if self._upwards else address
        tie = created if self._by_creation else address
        return [0, segment, self._edge, self._edge, tie, keys, blocks, address]

    def _empty_cache(self) -> int:
        """Give every segment that holds no block in use back to the driver (`release_cached_blocks`); bytes
        of them.
        """
        edge, given = self._edge, 0
        for keys, blocks in (pool for pools in self._pools.values() for pool in pools):
            for key, block in list(blocks.items()):
                if block[_BEFORE] is edge and block[_AFTER] is edge:
                    given += block[_SIZE]
                    del blocks[key]
            keys[:] = [key for key in keys if key in blocks]
        return given


def survives(
    events: Sequence[int],
    sizes: Sequence[int],
    capacity: int,
    ties: Ties = "address",
    streams: Streams | None = None,
) -> bool:
    """Whether every request is served under a capacity in bytes, with release-and-retry."""
    try:
        Quick(capacity, ties).run(events, sizes, streams)
    except OutOfMemory:
        return False
    return True


def smallest_capacity(
    events: Sequence[int],
    sizes: Sequence[int],
    reserved: int,
    ties: Ties = "address",
    streams: Streams | None = None,
) -> int:
    """The smallest capacity in bytes that survives, as `planner/allocator/replay.py` `smallest_capacity`
    searches for it; `reserved`: the most that is reserved without a bound. 0 for no allocation at all.
    """
    unit = SMALL_SEGMENT
    live = most = 0
    for event in events:
        if event >= 0:
            if event != EMPTY_CACHE and sizes[event]:
                live += round_size(sizes[event])
                most = max(most, live)
        elif sizes[~event]:
            live -= round_size(sizes[~event])
    if not most:
        return 0
    failed, enough = (most - 1) // unit, -(-reserved // unit)
    lacking, width = failed, 0
    while enough - failed > max(1, enough // PRECISION):
        slow = enough - failed > width // 2 > 0  # the guess did not halve what is left: halve it
        width = enough - failed
        middle = (
            (enough + failed) // 2
            if slow
            else enough - 1
            if enough - lacking <= 1
            else (enough + lacking) // 2
        )
        try:
            _, used = Quick(middle * unit, ties).run(events, sizes, streams)
        except OutOfMemory as error:
            failed = middle
            lacking = min(max(failed, -(-error.needed // unit) - 1), enough - 1)
        else:  # what it reserved at most is enough for the same course
            enough = max(failed + 1, min(middle, -(-used // unit)))
            lacking = lacking if lacking < enough - 1 else failed
    return enough * unit
