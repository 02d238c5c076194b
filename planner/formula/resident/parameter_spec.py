"""ParameterSpec: one kind of resident parameter."""

from __future__ import annotations

from dataclasses import dataclass, replace

from memplan.planner.formula.symbolic.expr import Expr, Sized, as_expr, ceil_div, minimum, product
from memplan.planner.tables.dtypes import DTYPE_BITS, itemsize
from memplan.planner.tables.low_rank import Projector

# Model types whose linear layers are a subclass of nn.Linear (FalconLinear): transformers 5.23
# integrations/bitsandbytes.py replace_with_bnb_linear converts only `type(module) is nn.Linear` and Conv1D,
# so that 4-bit and 8-bit loading leave them as they are.
NEVER_QUANTIZED = ("falcon",)


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One kind of resident parameter: how many, in which dtype it is stored, whether it is trained."""

    name: str
    shape: tuple[Sized, ...]
    dtype: str
    count: int
    trained: bool
    role: str
    layers: tuple[int, ...] = ()
    logical: bool = True  # counted as a parameter (buffers are not)
    projector: Projector | None = None  # of its gradient, where the optimizer projects it

    @property
    def elements(self) -> Expr:
        """Elements of one tensor: the product of its shape."""
        return product(self.shape)

    @property
    def low(self) -> ParameterSpec:
        """What the optimizer's states are like: of a projected matrix its projected gradient."""
        if self.projector is None:
            return self
        rows, columns = self.shape
        rank, right = self.projector
        return replace(self, shape=(rows, rank) if right else (rank, columns))

    def vectors(self, right: bool, count: Sized | None = None) -> tuple[Sized, ...]:
        """The shape of so many right or left singular vectors of a matrix; None: of all."""
        rows, columns = self.shape
        count = minimum(rows, columns) if count is None else count
        return (count, columns) if right else (rows, count)


def packed_bytes(elements: Sized, dtype: str) -> Expr:
    """Bytes of `elements` values, values of less than 8 bits packed."""
    if DTYPE_BITS[dtype] < 8:
        return ceil_div(as_expr(elements) * DTYPE_BITS[dtype], 8)
    return as_expr(elements) * itemsize(dtype)
