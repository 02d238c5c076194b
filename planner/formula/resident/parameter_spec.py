"""ParameterSpec: one kind of resident parameter."""

from __future__ import annotations

from dataclasses import dataclass

from memplan.planner.formula.symbolic.expr import Expr, Sized, product

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

    @property
    def elements(self) -> Expr:
        """Elements of one tensor: the product of its shape."""
        return product(self.shape)
