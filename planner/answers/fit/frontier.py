"""What fits a GPU, exactly: the largest micro-batch at a sequence length, the longest sequence at a
micro-batch, and the line between.

Every answer is a bisection over the same compiled expressions that `plan` evaluates (`formula.symbolic`), so
a boundary is exact for the formula: one step further does not fit. Sizes are bytes; a boundary is None where
not even the smallest size fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from memplan.planner.answers.verdict import Word
from memplan.planner.formula.engine import rank_of, symbolic, whole_segments
from memplan.planner.formula.program import Symbolic
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.gpus import Gpu

MOST_BATCH = 4096
MOST_TOKENS = 2**24
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SEQUENCES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


@dataclass(frozen=True, slots=True)
class Room:
    """What a GPU leaves for tensors. `error` is the formula's recorded worst error: with it, `holds` says
    only what surely fits.
    """

    gpu: Gpu
    error: float = 0.0

    def device_bytes(self, allocated: int) -> int:
        """Device bytes of so many allocated ones, as `plan` counts them: whole segments and this GPU's
        context.
        """
        return whole_segments(allocated) + self.gpu.context_bytes

    def holds(self, allocated: int) -> bool:
        """True where the verdict for so many allocated bytes is `fits` (verdict.py: the recorded error on
        top).
        """
        return self.device_bytes(allocated) + round(allocated * self.error) <= self.gpu.usable_bytes

    def verdict(self, allocated: int) -> Word:
        """fits, tight or no, as `judge` says of a formula's prediction with so many allocated bytes."""
        if self.holds(allocated):
            return "fits"
        return (
            "no"
            if self.device_bytes(allocated) - round(allocated * self.error) > self.gpu.usable_bytes
            else "tight"
        )


def peak_bytes(structure: Symbolic, batch: int, sequence: int, rank: int) -> int:
    """Peak allocated bytes without their components: what a search asks thousands of times."""
    chosen = structure.program(structure.guard(batch, sequence)).chosen((batch, sequence, rank))
    return max(size for _, size in chosen.values())


def peak_of(spec: ModelSpec, setup: Setup) -> int:
    """Peak allocated bytes of one setup, by the formula."""
    return symbolic(spec, setup).peak_once(setup.micro_batch, setup.sequence_length, rank_of(setup))


class Structure:
    """One model and setup as a function of micro-batch and sequence length, on one GPU."""

    def __init__(self, spec: ModelSpec, setup: Setup, room: Room) -> None:
        self.spec, self.setup, self.room = spec, setup, room
        self.symbolic: Symbolic = symbolic(spec, setup)
        self.rank = rank_of(setup)

    def allocated(self, batch: int, sequence: int) -> int:
        """Peak allocated bytes."""
        return peak_bytes(self.symbolic, batch, sequence, self.rank)

    def fits(self, batch: int, sequence: int) -> bool:
        return self.room.holds(self.allocated(batch, sequence))

    def largest_batch(self, sequence: int | None = None) -> int | None:
        """The largest micro-batch that fits at a sequence length (the setup's), up to 4,096; None where a
        micro-batch of 1 does not.
        """
        tokens = sequence or self.setup.sequence_length
        return boundary(lambda batch: self.fits(batch, tokens), MOST_BATCH)

    def longest_sequence(self, batch: int | None = None) -> int | None:
        """The longest sequence that fits at a micro-batch (the setup's), within learned positions; None where
        1 token does not.
        """
        rows = batch or self.setup.micro_batch
        return boundary(
            lambda sequence: self.fits(rows, sequence),
            min(MOST_TOKENS, self.spec.max_positions or MOST_TOKENS),
        )

    def frontier(self, batches: Iterable[int] = BATCHES) -> list[tuple[int, int | None]]:
        """(micro-batch, longest sequence) along the line of what fits."""
        return [(batch, self.longest_sequence(batch)) for batch in batches]

    def cells(self, batches: Iterable[int] = BATCHES, sequences: Iterable[int] = SEQUENCES) -> list[Cell]:
        """Device bytes and whether they fit, over a grid of micro-batches and sequence lengths, by one NumPy
        evaluation.
        """
        import numpy

        rows = [batch for batch in batches]
        columns = [sequence for sequence in sequences if sequence <= (self.spec.max_positions or MOST_TOKENS)]
        if not columns:
            return []
        peaks: Any = self.symbolic.grid(numpy.array(rows)[:, None], numpy.array(columns)[None, :], self.rank)[
            "peak"
        ]
        return [
            Cell(batch, sequence, self.room.device_bytes(int(peaks[i, j])), self.room.holds(int(peaks[i, j])))
            for i, batch in enumerate(rows)
            for j, sequence in enumerate(columns)
        ]


@dataclass(frozen=True, slots=True)
class Cell:
    """One micro-batch and sequence length of a grid."""

    micro_batch: int
    sequence_length: int
    device_bytes: int
    fits: bool

    def to_document(self) -> dict[str, Any]:
        return {
            "micro_batch": self.micro_batch,
            "sequence_length": self.sequence_length,
            "device_bytes": self.device_bytes,
            "fits": self.fits,
        }


def boundary(holds: Callable[[int], bool], most: int) -> int | None:
    """The largest n from 1 to `most` with holds(1..n), by doubling and bisection; None where not even 1
    holds.

    A property that holds, fails and holds again (it does not, for memory that grows with n) would give the
    end of its first stretch found.
    """
    if not holds(1):
        return None
    low, high = 1, 2
    while high <= most and holds(high):
        low, high = high, high * 2
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
