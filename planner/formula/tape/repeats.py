"""Equal layers as blocks: what is walked once and repeated, so that a model of a hundred layers costs as much
as one of a dozen.
"""

from __future__ import annotations

from typing import TypeVar

StepInterpreter = TypeVar("StepInterpreter")


def compress(sequence: list[StepInterpreter], lead: int = 1) -> list[tuple[list[StepInterpreter], int]]:
    """The layers as blocks with how often each is repeated in a row: the first `lead` and the last of a run
    alone, the middle as one.
    """
    blocks: list[tuple[list[StepInterpreter], int]] = []
    i = 0
    while i < len(sequence):
        period, repeats = _period(sequence, i)
        if repeats < lead + 4:
            blocks.append(([sequence[i]], 1))
            i += 1
            continue
        block = sequence[i : i + period]
        blocks += [*[(block, 1)] * lead, (block, repeats - lead - 1), (block, 1)]
        i += period * repeats
    return blocks


def _period(sequence: list[StepInterpreter], start: int, longest: int = 8) -> tuple[int, int]:
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
