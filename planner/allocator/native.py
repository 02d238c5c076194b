"""Blocks, pools and segments of PyTorch's CUDA caching allocator, and its default mode.

The rules and constants are those of c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h (torch
2.13), with the default settings: one device, no CUDA graph, `max_split_size` and
`garbage_collection_threshold` unset. A block serves the stream that first asked for it alone, so each stream
has pools of its own; the driver's memory, and the release of what is cached, they share. Two modes:
*native* (one cudaMalloc a segment), here, and *expandable* (one growing mapping a pool), in
  `planner/allocator/expandable.py`.

Between free blocks of exactly one size, up to torch 2.11 the lowest address wins, and no source says which
addresses cudaMalloc returns. Each new segment lies below the ones before it here: so replayed, published runs
on a T4 reach their measured reserved peak to the byte that were 3 to 9 % off with ascending addresses (eager
attention, whose scores come in equal blocks), and no other run moves by 1 %. In torch 2.12 the block object
that was created first wins, wherever it lies: a split gives the request a new object and leaves the old one
to the remainder, a merge keeps the object of the block being freed (observed: torch 2.12.0's own allocator,
52,063 events of one run with reserved equal after every one). From torch 2.13 on the oldest segment wins, and
within one the lowest address: BlockComparatorSizeCounterAddress, pytorch/pytorch#183591 (observed: every one
of 1,125 such choices in dry runs of 2.13.0, 1,999 of 2.14.1). An expandable segment is one, so there this is
the order of addresses. `ties` chooses.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from itertools import chain, count
from typing import Literal, NamedTuple

MIN_BLOCK = 512  # kMinBlockSize: every request is rounded up to a multiple
SMALL_LIMIT = 2**20  # kSmallSize: the largest request that the small pool serves
SMALL_SEGMENT = 2 * 2**20  # kSmallBuffer: a segment (or granule) of the small pool
LARGE_SEGMENT = (
    20 * 2**20
)  # large_segment_size: what a request below LARGE_LIMIT reserves, and the large pool's granule
LARGE_LIMIT = 10 * 2**20  # kMinLargeAlloc: from here on a segment fits its request
LARGE_ROUND = 2 * 2**20  # kRoundLarge: rounded up to this
_SHIFT = 48  # a free block's sort key is size << 48 | tie: best fit, and between equal blocks the lowest tie
_MASK = (1 << _SHIFT) - 1
Ties = Literal["address", "creation", "segment"]


def round_size(nbytes: int) -> int:
    """Bytes of the smallest block that serves a request of `nbytes` (`round_size`): a multiple of 512, at
    least 512.
    """
    return (nbytes + 511) & ~511 if nbytes > 0 else MIN_BLOCK


def segment_size(size: int) -> int:
    """Bytes that native mode asks cudaMalloc for, given a rounded request (`get_allocation_size`)."""
    if size <= SMALL_LIMIT:
        return SMALL_SEGMENT
    return LARGE_SEGMENT if size < LARGE_LIMIT else -(-size // LARGE_ROUND) * LARGE_ROUND


class Block:
    """A range of one segment: in use, free, or (expandable mode) unmapped; neighbors are linked in address
    order. `tie` decides between free blocks of one size: the address, or how many objects were made before.
    """

    __slots__ = ("address", "size", "tie", "previous", "next", "free", "mapped", "pool")

    def __init__(
        self, address: int, size: int, pool: Pool, *, free: bool = True, mapped: bool = True
    ) -> None:
        self.address, self.size, self.pool = address, size, pool
        self.tie = address
        self.free, self.mapped = free, mapped
        self.previous: Block | None = None
        self.next: Block | None = None


class Pool:
    """The small or the large pool: its free blocks in best-fit order."""

    __slots__ = ("small", "order", "at", "unmapped")

    def __init__(self, small: bool) -> None:
        self.small = small
        self.order: list[int] = []
        self.at: dict[int, Block] = {}
        self.unmapped: list[Block] = []  # expandable mode: in address order, the last one without end

    def add(self, block: Block) -> None:
        """Take in a free block."""
        insort(self.order, block.size << _SHIFT | block.tie)
        self.at[block.tie] = block

    def remove(self, block: Block) -> None:
        """Take out a block that is in the pool."""
        del self.order[bisect_left(self.order, block.size << _SHIFT | block.tie)]
        del self.at[block.tie]

    def take(self, size: int) -> Block | None:
        """The smallest free block of at least `size` bytes, removed from the pool; None where there is
        none.
        """
        order = self.order
        index = bisect_left(order, size << _SHIFT)
        if index == len(order):
            return None
        if self.unmapped:
            index = self._skip_growing(index)
        return self.at.pop(order.pop(index) & _MASK)

    def _skip_growing(self, index: int) -> int:
        """`get_free_block`: a block that could grow into unmapped space counts with that space when fits are
        compared.
        """
        after = self.at[self.order[index] & _MASK].next
        if after is None or after.mapped:  # it cannot, and all that follow are as large
            return index
        while index + 1 < len(self.order) and self._reach(index + 1) < self._reach(index):
            index += 1
        return index

    def _reach(self, index: int) -> int:
        block = self.at[self.order[index] & _MASK]
        return block.size + (block.next.size if block.next is not None and not block.next.mapped else 0)


class OutOfMemory(Exception):
    """The request does not fit under the capacity, even after every cached segment was released; `needed`
    bytes would have let it grow.
    """

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


class Undecided(Exception):
    """A request that some of the capacities still in question would serve and others not; nothing was done
    for it.
    """


class _State(NamedTuple):
    """What an allocator goes back to: counters, and the fields of each block and pool."""

    reserved: int
    retries: int
    end: int
    blocks: list[tuple[Block, int, int, int, Block | None, Block | None, bool, bool]]
    pools: list[tuple[Pool, list[int], dict[int, Block], list[Block]]]


class Native:
    """The allocator of the default mode: one cudaMalloc a segment; `reserved` and `retries` are its counters.

    `lower_bound` is `capacity`, or less where several capacities are followed at once, from `lower_bound` to
    `capacity`: then a request that they would answer differently raises Undecided, and may be asked again of
    a copied that has one of them.
    """

    expandable = False

    def __init__(self, capacity: int | None = None, fraction: bool = False, ties: Ties = "address") -> None:
        self.ties = ties
        self._created = count()
        self.capacity = self.lower_bound = 1 << 62 if capacity is None else capacity
        self.fraction = fraction
        self.reserved = self.retries = self._wanted = 0
        self.streams: dict[str, tuple[Pool, Pool]] = {}
        # by address, cudaMalloc goes downwards; upwards, the oldest segment has the lowest
        self._end = LARGE_ROUND if ties == "segment" else _MASK // LARGE_ROUND * LARGE_ROUND
        self._pools_of("")

    @property
    def pools(self) -> list[Pool]:
        """Every stream's pools."""
        return [pool for pools in self.streams.values() for pool in pools]

    def _pools_of(self, stream: str) -> tuple[Pool, Pool]:
        """The large and the small pool of a stream, made when it first asks."""
        pools = self.streams[stream] = Pool(False), Pool(True)
        return pools

    def allocate(self, nbytes: int, stream: str = "") -> Block:
        """A block for a request of `nbytes` on a stream; raises OutOfMemory."""
        size = (nbytes + 511) & ~511 if nbytes > 0 else MIN_BLOCK
        pools = self.streams.get(stream) or self._pools_of(stream)
        pool = pools[size <= SMALL_LIMIT]
        block = pool.take(size)
        if block is None:
            block = self._grow_or_retry(pool, size)
        rest = block.size - size
        if rest > SMALL_LIMIT or (rest >= MIN_BLOCK and (pool.small or self.expandable)):
            self._split(block, size, rest)
        block.free = False
        return block

    def release(self, block: Block) -> Block:
        """Return a block to its pool, merged with free neighbors; the free block that results."""
        pool, before, after = block.pool, block.previous, block.next
        if before is not None and before.free and before.mapped:
            pool.remove(before)
            self._absorb(before, block)
            if self.ties == "creation":
                before.tie = block.tie
            block = before
        if after is not None and after.free and after.mapped:
            pool.remove(after)
            self._absorb(block, after)
        block.free = True
        insort(pool.order, block.size << _SHIFT | block.tie)
        pool.at[block.tie] = block
        return block

    def empty_cache(self) -> None:
        """Give every segment that holds no block in use back to the driver (`release_cached_blocks`)."""
        for pool in self.pools:
            for block in [b for b in pool.at.values() if b.previous is None and b.next is None]:
                pool.remove(block)
                self.reserved -= block.size

    def copy(self, used: Iterable[Block], capacity: int) -> tuple[Native, dict[Block, Block]]:
        """(an allocator in the same state with a capacity of its own, its block for each of ours); `used` are
        all the blocks in use.
        """
        copied = type(self)(capacity, self.fraction, self.ties)
        copied.reserved, copied.retries, copied._end = self.reserved, self.retries, self._end
        pools = {
            pool: other
            for stream, ours in self.streams.items()
            for pool, other in zip(ours, copied._pools_of(stream), strict=True)
        }
        made_so_far = next(self._created)
        self._created, copied._created = count(made_so_far), count(made_so_far)
        others = (blocks for pool in pools for blocks in (pool.at.values(), pool.unmapped))
        made = {
            block: Block(
                block.address,
                block.size,
                pools.get(block.pool, block.pool),
                free=block.free,
                mapped=block.mapped,
            )
            for block in chain(used, *others)
        }
        for block, copy in made.items():
            copy.tie = block.tie
            copy.previous = made[block.previous] if block.previous is not None else None
            copy.next = made[block.next] if block.next is not None else None
        for ours, pool in pools.items():
            pool.order = ours.order.copy()
            pool.at = {tie: made[block] for tie, block in ours.at.items()}
            pool.unmapped = [made[block] for block in ours.unmapped]
        return copied, made

    def _grow_or_retry(self, pool: Pool, size: int) -> Block:
        """A new segment's block, after the cache was released if need be; raises OutOfMemory, and Undecided
        with the state as it was.
        """
        before = self._state() if self.lower_bound < self.capacity else None
        try:
            block = self._grow(pool, size)
            if block is None:
                self.empty_cache()
                self.retries += 1
                block = self._grow(pool, size)
        except Undecided:
            assert before is not None
            self._restore(before)
            raise
        if block is None:
            raise OutOfMemory(self._wanted)
        return block

    def _state(self) -> _State:
        """All that growing and releasing change: counters, pools, blocks not in use and their neighbors."""
        idle = [b for pool in self.pools for b in (*pool.at.values(), *pool.unmapped)]
        beside = (b for block in idle for b in (block.previous, block.next) if b is not None)
        blocks = [
            (b, b.address, b.size, b.tie, b.previous, b.next, b.free, b.mapped)
            for b in dict.fromkeys(chain(idle, beside))
        ]
        pools = [(p, p.order.copy(), p.at.copy(), p.unmapped.copy()) for p in self.pools]
        return _State(self.reserved, self.retries, self._end, blocks, pools)

    def _restore(self, state: _State) -> None:
        self.reserved, self.retries, self._end = state.reserved, state.retries, state.end
        for block, address, size, tie, previous, after, free, mapped in state.blocks:
            block.address, block.size, block.tie, block.free, block.mapped = address, size, tie, free, mapped
            block.previous, block.next = previous, after
        for pool, order, at, unmapped in state.pools:
            pool.order, pool.at, pool.unmapped = order, at, unmapped

    def _refused(self, wanted: int) -> bool:
        """Whether the driver refuses to let what is reserved grow to `wanted` bytes; raises Undecided."""
        self._wanted = wanted
        if wanted <= self.lower_bound:
            return False
        if wanted <= self.capacity:
            raise Undecided
        return True

    def _grow(self, pool: Pool, size: int) -> Block | None:
        segment = segment_size(size)
        if self._refused(self.reserved + segment):
            return None
        self.reserved += segment
        if self.ties != "segment":
            self._end -= segment
        block = Block(self._end, segment, pool)
        if self.ties == "segment":
            self._end += segment
        self._number(block)
        return block

    def _number(self, block: Block) -> None:
        """Say that a block's object is the newest one."""
        if self.ties == "creation":
            block.tie = next(self._created)

    def _split(self, block: Block, size: int, rest: int) -> None:
        remainder = Block(block.address + size, rest, block.pool)
        if self.ties == "creation":
            remainder.tie = block.tie
            self._number(block)
        after = block.next
        remainder.previous, remainder.next = block, after
        if after is not None:
            after.previous = remainder
        block.next = remainder
        block.size = size
        block.pool.add(remainder)

    @staticmethod
    def _absorb(block: Block, after: Block) -> None:
        block.size += after.size
        block.next = after.next
        if after.next is not None:
            after.next.previous = block
