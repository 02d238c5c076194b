"""The native allocator in one loop: what is allocated and reserved at most, and whether a capacity survives.

The same rules, in the same order of addresses, as `planner/allocator/native.py`, which says where they come
from; a test compares the two. What is not asked here is what it did at each event, and for each tensor: so a
run of 60,000 events takes less than a tenth of a second.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from memplan.planner.allocator.native import (
    LARGE_LIMIT,
    LARGE_ROUND,
    LARGE_SEGMENT,
    SMALL_LIMIT,
    SMALL_SEGMENT,
    OutOfMemory,
    Ties,
    round_size,
)
from memplan.planner.allocator.replay import PRECISION

EMPTY_CACHE = 1 << 60
"""What stands among events where the cache is given back (`torch.cuda.empty_cache`)."""
_SHIFT = 48
_LOWEST = ((1 << _SHIFT) - 1) // LARGE_ROUND * LARGE_ROUND
_TIE, _SIZE, _BEFORE, _AFTER, _FREE, _POOL, _ADDRESS = range(7)  # of a block, which is a list: quick to make
Block = list[Any]


class Quick:
    """The allocator's state: `allocated` and `reserved` bytes now. Free blocks of each pool in best-fit
    order: by size, then `ties`, the lowest address or the block object that was created first (torch 2.12).
    """

    def __init__(self, capacity: int = 1 << 62, ties: Ties = "address") -> None:
        self.capacity = capacity
        self._by_creation, self._created = ties == "creation", 0
        self.allocated = self.reserved = 0
        self._lowest = _LOWEST
        self._small: tuple[list[int], list[Block]] = ([], [])
        self._large: tuple[list[int], list[Block]] = ([], [])
        self._live: list[Block | None] = []

    def run(self, events: Sequence[int], sizes: Sequence[int]) -> tuple[int, int]:
        """(most allocated, most reserved) bytes over these events, which go on from those before. An event is
        an id at its birth, ~id at its release, or EMPTY_CACHE; `sizes[id]`: bytes asked for.

        Raises OutOfMemory where a request does not fit after the cache was released; nothing may follow.
        """
        live = self._live
        live.extend([None] * (len(sizes) - len(live)))
        small, large = self._small, self._large
        allocated, reserved, lowest = self.allocated, self.reserved, self._lowest
        most, most_reserved = allocated, reserved
        by_creation, created, capacity = self._by_creation, self._created, self.capacity
        for event in events:
            if event >= 0:
                if event == EMPTY_CACHE:
                    self.reserved = reserved
                    self._empty_cache()
                    reserved = self.reserved
                    continue
                asked = sizes[event]
                if not asked:  # an empty storage asks for nothing
                    continue
                size = (asked + 511) & ~511
                pool = small if size <= SMALL_LIMIT else large
                keys, blocks = pool
                place = bisect_left(keys, size << _SHIFT)
                if place < len(keys):
                    del keys[place]
                    block = blocks.pop(place)
                    rest = block[_SIZE] - size
                    block[_FREE] = False
                else:
                    segment = (
                        SMALL_SEGMENT
                        if size <= SMALL_LIMIT
                        else LARGE_SEGMENT
                        if size < LARGE_LIMIT
                        else -(-size // LARGE_ROUND) * LARGE_ROUND
                    )
                    if reserved + segment > capacity:
                        self.reserved = reserved
                        self._empty_cache()
                        reserved = self.reserved
                        if reserved + segment > capacity:
                            raise OutOfMemory(reserved + segment)
                    lowest -= segment
                    reserved += segment
                    if reserved > most_reserved:
                        most_reserved = reserved
                    block = [created if by_creation else lowest, segment, None, None, False, pool, lowest]
                    created += 1
                    rest = segment - size
                if rest and (pool is small or rest > SMALL_LIMIT):
                    address, after = block[_ADDRESS] + size, block[_AFTER]
                    tie = address
                    if by_creation:  # the request gets a new object, the remainder keeps the old one
                        tie = block[_TIE]
                        block[_TIE] = created
                        created += 1
                    cut: Block = [tie, rest, block, after, True, pool, address]
                    if after is not None:
                        after[_BEFORE] = cut
                    block[_AFTER] = cut
                    block[_SIZE] = size
                    key = rest << _SHIFT | tie
                    place = bisect_left(keys, key)
                    keys.insert(place, key)
                    blocks.insert(place, cut)
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
                block = found
                live[~event] = None
                tie, size, before, after, _, pool, _ = block
                keys, blocks = pool
                allocated -= size
                if before is not None and before[_FREE]:
                    place = bisect_left(keys, before[_SIZE] << _SHIFT | before[_TIE])
                    del keys[place]
                    del blocks[place]
                    size += before[_SIZE]
                    before[_AFTER] = after
                    if after is not None:
                        after[_BEFORE] = before
                    if by_creation:  # the object of the block being freed stays
                        before[_TIE] = tie
                    block, tie = before, before[_TIE]
                if after is not None and after[_FREE]:
                    place = bisect_left(keys, after[_SIZE] << _SHIFT | after[_TIE])
                    del keys[place]
                    del blocks[place]
                    size += after[_SIZE]
                    beyond = after[_AFTER]
                    block[_AFTER] = beyond
                    if beyond is not None:
                        beyond[_BEFORE] = block
                block[_SIZE] = size
                block[_FREE] = True
                key = size << _SHIFT | tie
                place = bisect_left(keys, key)
                keys.insert(place, key)
                blocks.insert(place, block)
        self.allocated, self.reserved, self._lowest, self._created = allocated, reserved, lowest, created
        return most, most_reserved

    def _empty_cache(self) -> None:
        """Give every segment that holds no block in use back to the driver (`release_cached_blocks`)."""
        for keys, blocks in (self._large, self._small):
            kept = [
                (key, block)
                for key, block in zip(keys, blocks, strict=True)
                if block[_BEFORE] is not None or block[_AFTER] is not None
            ]
            self.reserved -= sum(block[_SIZE] for block in blocks) - sum(block[_SIZE] for _, block in kept)
            keys[:] = [key for key, _ in kept]
            blocks[:] = [block for _, block in kept]


def survives(events: Sequence[int], sizes: Sequence[int], capacity: int, ties: Ties = "address") -> bool:
    """Whether every request is served under a capacity in bytes, with release-and-retry."""
    try:
        Quick(capacity, ties).run(events, sizes)
    except OutOfMemory:
        return False
    return True


def smallest_capacity(
    events: Sequence[int], sizes: Sequence[int], reserved: int, ties: Ties = "address"
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
            _, used = Quick(middle * unit, ties).run(events, sizes)
        except OutOfMemory as error:
            failed = middle
            lacking = min(max(failed, -(-error.needed // unit) - 1), enough - 1)
        else:  # what it reserved at most is enough for the same course
            enough = max(failed + 1, min(middle, -(-used // unit)))
            lacking = lacking if lacking < enough - 1 else failed
    return enough * unit
