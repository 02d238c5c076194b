"""Equal layers as blocks: what is walked once and repeated, so that a model of a hundred layers costs as much
as one of a dozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

Step = TypeVar("Step")


@dataclass(slots=True)
class Region:
    """A walked layer that stands for `times` layers: the nodes from `low` to below `high` are its backward."""

    low: int
    high: int
    times: int
    extra: dict[int, int]  # what the other layers left behind in the forward, by buffer
    start: int | None = None
    forward: Span | None = None
    backward: Span | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """What a repeated layer did once, forwards or backwards: events [start, stop) of the log, whose event
    `stop` stands for the other layers.
    """

    start: int
    stop: int


def compress(sequence: list[Step]) -> list[tuple[list[Step], int]]:
    """The layers as blocks with how often each is repeated in a row: the first and last of a run alone, the
    middle as one.
    """
    blocks: list[tuple[list[Step], int]] = []
    i = 0
    while i < len(sequence):
        period, repeats = _period(sequence, i)
        if repeats < 5:
            blocks.append(([sequence[i]], 1))
            i += 1
            continue
        block = sequence[i : i + period]
        blocks += [(block, 1), (block, repeats - 2), (block, 1)]
        i += period * repeats
    return blocks


def _period(sequence: list[Step], start: int, longest: int = 8) -> tuple[int, int]:
    """The shortest period with which the layers from `start` on repeat at least five times, and how many
    times they do.
    """
    for period in range(1, longest + 1):
        repeats = 1
        while (
            sequence[start : start + period]
            == sequence[start + period * repeats : start + period * (repeats + 1)]
        ):
            repeats += 1
        if repeats >= 5:
            return period, repeats
    return 1, 1
