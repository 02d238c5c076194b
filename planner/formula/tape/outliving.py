"""What outlives its forward: an activation, whatever saved it (planner/tables/components.py)."""

from __future__ import annotations

from collections import Counter

from memplan.planner.formula.tape.tape import Shape, Tape


def end_forward(tape: Tape) -> None:
    """Note what is still there where a forward ends. Among buffers of one kind a birth may be matched by
    another one's death, which happens in repeated layers: they count together.
    """
    own: Counter[int] = Counter()
    for index, change in tape.log:
        if index < 0:
            own.update(change)
        else:
            own[index] += change
    kinds: Counter[tuple[str, Shape, str]] = Counter()
    for index, count in own.items():
        kinds[tape.infos[index].kind] += count
    for index, count in own.items():
        if count and kinds[tape.infos[index].kind] > 0:
            tape.infos[index].outlives = True
