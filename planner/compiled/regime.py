"""Which traced points stand for a question: sizes at which a model's code takes the same branches.

A micro-batch of one is a case of its own (masks and expanded views are then left out), a sequence on the
other side of a window, a chunk or the last position another, and kernels pad sequences that are no multiple
of 64: lengths with one remainder are solved together. Within such a regime every size is a polynomial;
outside, or where the number of events itself depends on the sequence (layers that walk it in chunks), the
sequence length stays fixed and only the micro-batch moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from memplan.planner.compiled.nodes import Grid, Point
from memplan.planner.inputs.pictures import read_sizes
from memplan.planner.inputs.setup import Setup

STEP = 64
"""Sequence lengths of one remainder are padded by equally many tokens in every tensor (the largest alignment
is SDPA's of the log-sum-exp, 32 rows); what kernels take beside those, their own rules say (trace/calls.py).
"""
ROOM = 8 * STEP
"""Tokens between two limits that four lengths need."""
USUAL = 512
LONGEST = 2**20
_LIMITS = (
    ("window", 0),
    ("chunk", 0),
    ("position", 1),
    ("seq_len", 1),
    ("seqlen", 1),
    ("index_topk", 1),
)
"""Words in the names of settings at whose value a model's code branches on the sequence length, or beyond
which there are no positions, or more keys than an indexer chooses; and what to add for the first such length.
"""


@dataclass(frozen=True, slots=True)
class Regime:
    """Sizes of one structure: `low` < S < `high` with S = `rest` modulo STEP, or one S where they are equal;
    `batch`: one B, or None for every B beyond 1.
    """

    batch: int | None
    low: int
    high: int
    rest: int = 0

    @property
    def fixed(self) -> bool:
        """Whether the sequence length is held."""
        return self.low == self.high

    def holds(self, point: Point) -> bool:
        """Whether a program of this regime answers for these sizes."""
        batch, sequence = point
        if batch != self.batch and (self.batch is not None or batch == 1):
            return False
        if self.fixed:
            return sequence == self.low
        return self.low < sequence < self.high and sequence % STEP == self.rest

    def grid(self) -> Grid:
        """The points to trace: three sequence lengths and two micro-batches, where they move."""
        batches = (2, 3) if self.batch is None else (self.batch,)
        return Grid(batches, (self.low,) if self.fixed else self._sequences()[:3])

    def check(self) -> Point | None:
        """A further point, which the program must meet; None where nothing moves."""
        if self.batch is not None and self.fixed:
            return None
        return self.batch or 5, (self.low if self.fixed else self._sequences()[3])

    def _sequences(self) -> tuple[int, int, int, int]:
        """Three lengths to solve with and a far one to check with."""
        first = self.low // STEP * STEP + STEP
        if first < USUAL and self.high - USUAL > ROOM:
            first = USUAL
        first += self.rest
        room = (self.high - 1 - first) // STEP * STEP
        step = max(STEP, min(USUAL, room // 7 // STEP * STEP))
        return first, first + step, first + 3 * step, first + min(room, 16 * step)


def regimes(config: Mapping[str, Any], setup: Setup) -> tuple[Regime, ...]:
    """The regimes that answer for a setup's sizes, the widest first; the last is that one point."""
    batch, sequence = setup.micro_batch, setup.sequence_length
    own = setup.completion_length or 0  # a row without a prompt is none
    limits = sorted({0, LONGEST, own, *(each for each in _limits(config) if each > 0)})
    low = max(each for each in limits if each <= sequence)
    high = min((each for each in limits if each > sequence), default=LONGEST)
    any_batch = 1 if batch == 1 else None
    found = [Regime(any_batch, low, high, sequence % STEP)]
    if sequence in limits or high - low <= ROOM or read_sizes(setup.images):
        found.clear()
    found += [Regime(any_batch, sequence, sequence), Regime(batch, sequence, sequence)]
    return tuple(dict.fromkeys(found))


def _limits(config: Mapping[str, Any]) -> Iterator[int]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _limits(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield from (value + beyond for word, beyond in _LIMITS if word in key)
