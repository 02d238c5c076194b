"""What the caching allocator charges for each block, from the addresses of a real history.

A block is as large as was asked for, in multiples of 512 bytes, unless what would remain of the free block is
too small to be split off (c10/cuda/CUDACachingAllocator.cpp should_split). Where free blocks lie follows from
the addresses, whatever rule chose among them, so that this holds for every version of torch.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

from memplan.planner.tables.units import MIB

ALLOC, FREE, OOM, SEGMENT, SEGMENT_GONE = range(5)
UNIT, SMALL = 512, MIB
Row = Sequence[int]


def charged(events: Sequence[Row], expandable: bool = False) -> dict[int, int]:
    """Place of each allocation among the events -> bytes of its block. Events: (kind, address, bytes)."""
    free = _Free()
    live: dict[int, int] = {}
    found = {}
    for place, event in enumerate(events):
        kind, address, size = event[:3]
        if kind == SEGMENT:
            if not expandable:
                free.borders |= {address, address + size}
            free.add(address, size)
        elif kind == SEGMENT_GONE:
            free.remove(address, size)
        elif kind == ALLOC:
            needed = max(UNIT, -(-size // UNIT) * UNIT)
            room = free.at(address)
            rest = room - needed
            least = UNIT if expandable or needed <= SMALL else SMALL + 1
            taken = room if 0 <= rest < least else needed
            free.remove(address, taken)
            live[address] = found[place] = taken
        elif kind == FREE and address in live:
            free.add(address, live.pop(address))
    return found


class _Free:
    """Free ranges, merged where they touch within a segment; `borders` are the ends of segments."""

    def __init__(self) -> None:
        self.borders: set[int] = set()
        self._starts: list[int] = []
        self._sizes: dict[int, int] = {}

    def add(self, address: int, size: int) -> None:
        place = bisect_left(self._starts, address)
        end = address + size
        if place < len(self._starts) and self._starts[place] == end and end not in self.borders:
            size += self._sizes.pop(self._starts.pop(place))
        before = self._starts[place - 1] if place else None
        if before is not None and before + self._sizes[before] == address and address not in self.borders:
            self._sizes[before] += size
            return
        self._starts.insert(place, address)
        self._sizes[address] = size

    def at(self, address: int) -> int:
        """Free bytes from that address on, 0 where it is not free."""
        place = bisect_right(self._starts, address) - 1
        if place < 0:
            return 0
        start = self._starts[place]
        return max(0, start + self._sizes[start] - address)

    def remove(self, address: int, size: int) -> None:
        place = bisect_right(self._starts, address) - 1
        if place < 0:
            return
        start = self._starts[place]
        end = start + self._sizes[start]
        if end <= address:
            return
        if start == address:
            self._starts.pop(place)
            del self._sizes[start]
        else:
            self._sizes[start] = address - start
        if address + size < end:
            insort(self._starts, address + size)
            self._sizes[address + size] = end - address - size
