"""What fits a GPU: the largest micro-batch at a sequence length, the longest sequence at a micro-batch, and
the line between.

Every answer is a bisection over the same compiled expressions that `plan` evaluates (`formula.symbolic`),
with as much reserved beside the tensors as the replay of a setup nearby says. At a boundary of the setup's
own micro-batch or sequence length the replay itself says `fits`, and one a hundredth further was not found.
Sizes are bytes; a boundary is None where not even the smallest size fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from memplan.planner.answers.verdict import Need, margin_of
from memplan.planner.formula.engine import rank_of, replay_of, symbolic, whole_segments
from memplan.planner.formula.program import Symbolic
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.inputs.tasks import shortest
from memplan.planner.tables.gpus import Gpu

MOST_BATCH = 4096
CONFIRMATIONS = 4  # sizes that the replay is asked about for one boundary
CLOSE = 0.01  # a boundary is looked for to this share of it
APART = 0.1  # two sizes whose tensors differ by more than this share of them show what more of them take
STEP = 0.002  # by which share more is left beside the tensors where a guess did not fit, doubled each time
MOST_TOKENS = 2**24
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SEQUENCES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


@dataclass(frozen=True, slots=True)
class Room:
    """What a GPU leaves for tensors. `error`: by which share the formula may be off; `spread`: what the
    allocator reserves beyond its tensors, as a share of them and `beside`, in bytes, taken from the replays
    of one or two setups for others like them.
    """

    gpu: Gpu
    error: float = 0.0
    spread: float = 0.0
    beside: int = 0

    def around(self, spec: ModelSpec, setup: Setup) -> Room:
        """The same room for setups like this one."""
        found = need(spec, setup, self.error)
        spread = max(0.0, found.reserved / found.allocated - 1)
        return replace(self, error=found.margin, spread=spread, beside=0)

    def through(self, found: Need, other: Need | None) -> Room:
        """The same room on a line through what was found at one size and, where it is far from that, at
        another; else with what is found there beside the same share.
        """
        spread = self.spread
        if other is not None and abs(found.allocated - other.allocated) > APART * found.allocated:
            slope = (found.reserved - other.reserved) / (found.allocated - other.allocated)
            spread = max(0.0, slope - 1)
        beside = found.reserved - round(found.allocated * (1 + spread))
        return replace(self, spread=spread, beside=beside)

    def reserved(self, allocated: int) -> int:
        """What is reserved for so many allocated bytes."""
        return whole_segments(max(allocated, round(allocated * (1 + self.spread)) + self.beside))

    def device_bytes(self, allocated: int) -> int:
        """Device bytes of so many allocated ones: what is reserved, and this GPU's context."""
        return self.reserved(allocated) + self.gpu.context_bytes

    def holds(self, allocated: int) -> bool:
        """True where so many allocated bytes fit (verdict.py: widened by the error)."""
        return (
            self.device_bytes(allocated) + round(self.reserved(allocated) * self.error)
            <= self.gpu.usable_bytes
        )


def peak_bytes(structure: Symbolic, batch: int, sequence: int, rank: int) -> int:
    """Peak allocated bytes without their components: what a search asks thousands of times."""
    chosen = structure.program(structure.guard(batch, sequence)).chosen((batch, sequence, rank))
    return max(size for _, size in chosen.values())


def peak_of(spec: ModelSpec, setup: Setup) -> int:
    """Peak allocated bytes of one setup, by the formula."""
    return symbolic(spec, setup).peak_once(setup.micro_batch, setup.sequence_length, rank_of(setup))


def need(spec: ModelSpec, setup: Setup, error: float = 0.0) -> Need:
    """What the formula says that a setup needs, replayed where one GPU runs it."""
    allocated, run = peak_of(spec, setup), replay_of(spec, setup)
    if run is None:
        return Need(allocated, whole_segments(allocated), error)
    return Need(allocated, run.reserved_bytes, max(error, margin_of("formula", setup)), survival=run)


class Structure:
    """One model and setup as a function of micro-batch and sequence length, on one GPU."""

    def __init__(self, spec: ModelSpec, setup: Setup, room: Room) -> None:
        self.spec, self.setup, self.room = spec, setup, room
        self.wide = room  # with what is reserved beside the tensors at the last boundary that was replayed
        self.symbolic: Symbolic = symbolic(spec, setup)
        self.rank = rank_of(setup)
        self._longest: dict[int, int | None] = {}

    def allocated(self, batch: int, sequence: int) -> int:
        """Peak allocated bytes."""
        return peak_bytes(self.symbolic, batch, sequence, self.rank)

    def fits(self, batch: int, sequence: int) -> bool:
        """Whether the allocated bytes of these sizes leave room; what is reserved is not asked."""
        return self.wide.holds(self.allocated(batch, sequence))

    def largest_batch(self, sequence: int | None = None) -> int | None:
        """The largest micro-batch that fits at a sequence length (the setup's), up to 4,096; None where a
        micro-batch of 1 does not. The replay confirms it.
        """
        tokens = sequence or self.setup.sequence_length
        return self._confirmed(
            lambda room: boundary(lambda batch: room.holds(self.allocated(batch, tokens)), MOST_BATCH),
            lambda batch: self.setup.with_(micro_batch=batch, sequence_length=tokens),
            self.setup.micro_batch if tokens == self.setup.sequence_length else None,
        )

    def longest_sequence(self, batch: int | None = None) -> int | None:
        """The longest sequence that fits at a micro-batch (the setup's), within learned positions; None where
        the shortest one does not. The replay confirms it.
        """
        rows, most = batch or self.setup.micro_batch, min(MOST_TOKENS, self.spec.max_positions or MOST_TOKENS)
        if rows in self._longest:
            return self._longest[rows]
        found = self._longest[rows] = self._confirmed(
            lambda room: boundary(
                lambda sequence: room.holds(self.allocated(rows, sequence)), most, shortest(self.setup)
            ),
            lambda sequence: self.setup.with_(micro_batch=rows, sequence_length=sequence),
            self.setup.sequence_length if rows == self.setup.micro_batch else None,
        )
        return found

    def _confirmed(
        self, most: Callable[[Room], int | None], at: Callable[[int], Setup], own: int | None
    ) -> int | None:
        """The largest size at which the replay says `fits`, to CLOSE of it: what is reserved beside the
        tensors at the setup's own size and at one guess leads to the next. `own`: the setup's own size, where
        this is a line through it; where no guess fits and that does, it is the answer.
        """
        room, best, asked = self.wide, None, need(self.spec, self.setup, self.room.error)
        back = STEP
        for _ in range(CONFIRMATIONS):
            found = most(room)
            if found is None or found == best:
                break
            here = need(self.spec, at(found), room.error)
            fits = here.fits(room.gpu)
            room = room.through(here, asked)
            if fits and (best is None or found > best):
                best, self.wide = found, room
            if not fits:  # what is reserved goes in steps: a line through one of them may miss again
                room = replace(room, beside=room.beside + round(here.allocated * back))
                back *= 2
            following = most(room)
            if fits and (following is None or following <= found * (1 + CLOSE)):
                break
        return own if best is None and asked.fits(self.room.gpu) else best

    def frontier(self, batches: Iterable[int] = BATCHES) -> list[tuple[int, int | None]]:
        """(micro-batch, longest sequence) along the line of what fits: of the setup's own micro-batch what
        the replay confirms, of others with as much beside the tensors as there.
        """
        longest = self.longest_sequence()
        most = min(MOST_TOKENS, self.spec.max_positions or MOST_TOKENS)
        return [
            (
                batch,
                longest
                if batch == self.setup.micro_batch
                else boundary(
                    lambda sequence, batch=batch: self.fits(batch, sequence),  # type: ignore[misc]
                    most,
                    shortest(self.setup),
                ),
            )
            for batch in batches
        ]

    def cells(self, batches: Iterable[int] = BATCHES, sequences: Iterable[int] = SEQUENCES) -> list[Cell]:
        """Device bytes and whether they fit, over a grid of micro-batches and sequence lengths, by one NumPy
        evaluation.
        """
        import numpy

        rows = [batch for batch in batches]
        least, most = shortest(self.setup), self.spec.max_positions or MOST_TOKENS
        columns = [sequence for sequence in sequences if least <= sequence <= most]
        if not columns:
            return []
        peaks: Any = self.symbolic.grid(numpy.array(rows)[:, None], numpy.array(columns)[None, :], self.rank)[
            "peak"
        ]
        return [
            Cell(batch, sequence, self.wide.device_bytes(int(peaks[i, j])), self.wide.holds(int(peaks[i, j])))
            for i, batch in enumerate(rows)
            for j, sequence in enumerate(columns)
        ]


class Cell(NamedTuple):
    """One micro-batch and sequence length of a grid."""

    micro_batch: int
    sequence_length: int
    device_bytes: int
    fits: bool

    def to_document(self) -> dict[str, Any]:
        """The cell as the JSON of `fit --grid` has it."""
        return {
            "micro_batch": self.micro_batch,
            "sequence_length": self.sequence_length,
            "device_bytes": self.device_bytes,
            "fits": self.fits,
        }


def boundary(holds: Callable[[int], bool], most: int, least: int = 1) -> int | None:
    """The largest n from `least` to `most` with holds(least..n), by doubling and bisection; None where not
    even `least` holds.

    A property that holds, fails and holds again (it does not, for memory that grows with n) would give the
    end of its first stretch found.
    """
    if least > most or not holds(least):
        return None
    low, high = least, 2 * least
    while high <= most and holds(high):
        low, high = high, high * 2
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
