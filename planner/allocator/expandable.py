"""PyTorch's CUDA caching allocator under `expandable_segments:True`: one mapping a pool, which grows and
shrinks by granules.

The same rules as `planner/allocator/native.py` has, and from the same sources
(c10/cuda/CUDACachingAllocator.cpp, torch 2.13); left out is the bound on a segment's address space (9/8 of
the GPU).
"""

from __future__ import annotations

from memplan.planner.allocator.native import (
    LARGE_SEGMENT,
    SMALL_SEGMENT,
    Block,
    Native,
    Pool,
    segment_size,
)


class Expandable(Native):
    """The allocator of `expandable_segments:True`: each pool is one mapping that grows by granules of 2 or 20
    MiB.
    """

    expandable = True

    def _pools_of(self, stream: str) -> tuple[Pool, Pool]:
        """Each pool has one mapping of its own. Only addresses of one pool are ever compared."""
        large, small = super()._pools_of(stream)
        for pool, start, size in (
            (small, 0, 1 << 46),
            (large, LARGE_SEGMENT << 22, 1 << 80),  # no setup asks for as much, however long its rows
        ):  # addresses are multiples of the granule
            pool.unmapped = [Block(start, size, pool, mapped=False)]
            self._number(pool.unmapped[0])
        return large, small

    def empty_cache(self) -> None:
        """Unmap every granule that lies inside a free block (`release_blocks`, `unmap_block`)."""
        for pool in self.pools:
            for block in list(pool.at.values()):
                self._unmap(block)

    def _grow(self, pool: Pool, size: int) -> Block | None:
        """`try_allocate_expandable_block`: the lowest free-and-unmapped range of `size` bytes, mapped as far
        as needed.
        """
        if self.fraction and self._refused(self.reserved + segment_size(size)):
            return None  # `alloc_block` compares what native mode would reserve
        block = next(
            candidate
            for candidate in map(self._with_free_before, pool.unmapped)
            if self._room(candidate, size)
        )
        if not block.mapped:
            mapped = self._map(block, min(block.size, size))
            if mapped is None:
                return None
            block = mapped
        while block.size < size:
            assert block.next is not None
            mapped = self._map(block.next, min(size - block.size, block.next.size))
            if mapped is None:
                return None
            block = mapped
        pool.remove(block)
        return block

    @staticmethod
    def _with_free_before(block: Block) -> Block:
        return block.previous if block.previous is not None and block.previous.free else block

    @staticmethod
    def _room(block: Block | None, size: int) -> bool:
        found = 0
        while found < size and block is not None and block.free:
            found += block.size
            block = block.next
        return found >= size

    def _map(self, block: Block, size: int) -> Block | None:
        """Back the first `size` bytes of an unmapped block by whole granules and merge them; the free block
        that results.
        """
        pool = block.pool
        granule = SMALL_SEGMENT if pool.small else LARGE_SEGMENT
        size = -(-size // granule) * granule
        if self._refused(self.reserved + size):
            return None
        self.reserved += size
        index = pool.unmapped.index(block)
        if size < block.size:
            rest = Block(block.address + size, block.size - size, pool, mapped=False)
            self._number(rest)
            rest.previous, rest.next = block, block.next
            if rest.next is not None:
                rest.next.previous = rest
            block.next, block.size = rest, size
            pool.unmapped[index] = rest
        else:
            del pool.unmapped[index]
        block.mapped = True
        return self.release(block)

    def _unmap(self, block: Block) -> None:
        pool = block.pool
        granule = SMALL_SEGMENT if pool.small else LARGE_SEGMENT
        start = -(-block.address // granule) * granule
        stop = (block.address + block.size) // granule * granule
        if stop <= start:
            return
        pool.remove(block)
        if start > block.address:
            before = block
            block = self._cut(before, start)
            if self.ties == "creation":
                block.tie = before.tie
                self._number(before)
            pool.add(before)
        if stop < block.address + block.size:
            after = self._cut(block, stop)
            self._number(after)
            pool.add(after)
        self.reserved -= block.size
        block.mapped = False
        for neighbor in (block.next, block.previous):
            if neighbor is not None and not neighbor.mapped:
                lower, upper = (block, neighbor) if neighbor is block.next else (neighbor, block)
                if neighbor in pool.unmapped:
                    pool.unmapped.remove(neighbor)
                self._absorb(lower, upper)
                if self.ties == "creation":
                    lower.tie = block.tie
                block = lower
        pool.unmapped.append(block)
        pool.unmapped.sort(key=lambda b: b.address)

    @staticmethod
    def _cut(block: Block, address: int) -> Block:
        upper = Block(address, block.address + block.size - address, block.pool)
        upper.previous, upper.next = block, block.next
        if upper.next is not None:
            upper.next.previous = upper
        block.next, block.size = upper, address - block.address
        return upper
