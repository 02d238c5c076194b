"""AdaLoRA's `update_ipt` after each optimizer step, as the allocator sees it (peft 0.21
tuners/adalora/layer.py RankAllocator.update_ipt): three scores of every adapter tensor, made anew each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memplan.planner.formula.parameters import IMPORTANCE, ParameterTable
from memplan.planner.formula.replay.events import Events
from memplan.planner.formula.replay.load import Values
from memplan.planner.formula.replay.orders import in_order
from memplan.planner.formula.resident.parameter_spec import ParameterSpec
from memplan.planner.tables.dtypes import itemsize


class Importance:
    """The scores of one run: which storage holds each, between steps."""

    def __init__(
        self,
        parameter_table: ParameterTable,
        values: Values,
        layers_of: Callable[[ParameterSpec], Sequence[int]],
    ) -> None:
        pairs = [(stored, layers_of(stored)) for stored in parameter_table.scored]
        bytes_of = {id(t): t.elements.evaluate(values) * itemsize(t.dtype) for t, _ in pairs}
        self.sizes = [bytes_of[id(stored)] for stored, _ in in_order(pairs)]
        self.held: list[list[int]] = []

    def update(self, out: Events) -> None:
        """One call: the first makes zeros for every tensor just before it scores it."""
        first = not self.held
        for number, size in enumerate(self.sizes):
            if first:
                self.held.append([out.alloc(size) for _ in IMPORTANCE])
            held = self.held[number]
            held[0] = self._assigned(out, held[0], size, temporaries=1)
            held[1] = self._assigned(out, held[1], size, temporaries=2)
            held[2] = self._uncertainty(out, held[2], size)

    @staticmethod
    def _assigned(out: Events, old: int, size: int, temporaries: int) -> int:
        """`(p * grad).abs()` or a sum of two products: the result is there before what it replaces goes."""
        made = [out.alloc(size) for _ in range(temporaries)]
        result = out.alloc(size)
        out.free(*made, old)
        return result

    @staticmethod
    def _uncertainty(out: Events, old: int, size: int) -> int:
        """`beta2 * old + (1 - beta2) * (ipt - exp_avg_ipt).abs()`: each operand goes once it is used."""
        decayed = out.alloc(size)
        difference = out.alloc(size)
        absolute = out.alloc(size)
        out.free(difference)
        scaled = out.alloc(size)
        out.free(absolute)
        result = out.alloc(size)
        out.free(decayed, scaled, old)
        return result
