"""Pass: one micro-batch of a tape as events, cut where its moments begin."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress

from memplan.planner.formula.replay.unroll import Unrolled
from memplan.planner.formula.tape.tape import Info, Tape

_PRODUCTS = ("matmul", "linear", "bmm")  # how the tape says what made a buffer
_WITHOUT = "8-bit linear"  # bitsandbytes' own cuBLASLt product (backends/cuda/ops.py int8_linear_matmul)
_INTO = ("tile of logits", "chunk of logits")  # what a product is written into


@dataclass(slots=True)
class Pass:
    """One micro-batch's events, from its forward on: `begin` where ids of what was there before end."""

    events: list[int]
    infos: list[int]
    begin: int
    marks: dict[str, int]
    gradients: list[int]
    left: list[int]  # alive at the end, gradients not among them


def as_pass(tape: Tape, made: Unrolled) -> Pass:
    """The events of one micro-batch, without what frees tensors that were there before it."""
    marks = {name: position for position, name in made.marks}
    start = min(marks.values())
    begin = max((each for each in made.events[:start] if each >= 0), default=-1) + 1
    ends = marks.get("end", len(made.events))
    # what was there before belongs to the run, not to the micro-batch: nothing of it is freed here
    theirs = [each >= begin or ~each >= begin for each in made.events[start:ends]]
    events = [*made.events[:start], *compress(made.events[start:ends], theirs)]
    marks = {name: min(at, start) + sum(theirs[: max(0, at - start)]) for name, at in marks.items()}
    alive = {each for each in events[start:] if each >= 0} - {~each for each in events[start:] if each < 0}
    gradients = [each for each in sorted(alive) if tape.infos[made.infos[each]].component == "gradients"]
    left = sorted(alive - set(gradients))
    return Pass(events, made.infos, begin, marks, gradients, left)


def first_products(made: Pass, tape: Tape) -> list[int | None]:
    """Where each thread's first product has its output: behind it comes that thread's workspace."""
    backward = made.marks.get("backward", len(made.events))
    spans = ((made.marks["forward"], backward), (backward, len(made.events)))

    def product(info: Info) -> bool:
        if info.why.endswith(_WITHOUT):
            return False
        return info.why.endswith(_PRODUCTS) or " @ " in info.why or info.name.endswith(_INTO)

    found: list[int | None] = []
    for start, stop in spans:
        found.append(
            next(
                (
                    position + 1
                    for position in range(start, stop)
                    if (each := made.events[position]) >= 0 and product(tape.infos[made.infos[each]])
                ),
                None,
            )
        )
    return found
