"""Symbolic rows: what a Row of a Breakdown is before B, S and R have values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memplan.planner.formula.symbolic.expr import Expr, Sized
from memplan.planner.prediction import Row
from memplan.planner.tables.components import Component


@dataclass(frozen=True, slots=True)
class SymbolicRow:
    """One kind of tensor: `size` is its bytes over all `count` of them."""

    name: str
    shape: tuple[Sized, ...]
    dtype: str
    count: int
    size: Expr
    component: Component
    why: str

    def at(self, values: Mapping[str, int]) -> Row:
        """The row where the symbols have values."""
        shape = tuple(d.evaluate(values) if isinstance(d, Expr) else d for d in self.shape)
        return Row(
            self.name, shape, self.dtype, self.count, self.size.evaluate(values), self.component, self.why
        )
