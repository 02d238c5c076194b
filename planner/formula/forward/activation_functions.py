"""Activation functions op by op, as transformers 5.24 activations.py and modeling_bloom.py write them."""

from __future__ import annotations

from collections.abc import Callable

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.tape.ops import Grads, add, mul, unary
from memplan.planner.formula.tape.tape import Node, Tape, Tensor
from memplan.planner.tables.errors import UsageError

Function = Callable[[Context, Tensor], Tensor]


def activation(name: str) -> Function:
    """The function of that name. UsageError where there is no rule for it."""
    found = ACTIVATIONS.get(name)
    if found is None:
        raise UsageError(
            f"the formula has no rule for activation '{name}': use --engine trace, or one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    return found


def _fused(kind: str) -> Function:
    """One kernel: saves what UNARY says."""
    return lambda w, x: unary(w.t, kind, x, "activation output")


def _new_gelu(w: Context, x: Tensor) -> Tensor:
    """0.5 * x * (1 + tanh(c * (x + 0.044715 * x^3))); autocast runs the power in fp32, and what follows is
    promoted.
    """
    t = w.t
    half = unary(t, "scale", x, "0.5 x")
    cube = unary(t, "scale", unary(t, "pow", w.autocast_fp32(x), "cube"), "scaled cube")
    inner = add(t, x, cube, "polynomial")
    del cube
    inner = unary(t, "scale", inner, "scaled polynomial")
    curve = unary(t, "tanh", inner, "tanh")
    del inner
    curve = unary(t, "shift", curve, "1 + tanh")
    return mul(t, half, curve, "activation output")


def _fast_gelu(w: Context, x: Tensor) -> Tensor:
    """0.5 * x * (1 + tanh(c * x * (1 + 0.044715 * x * x)))."""
    t = w.t
    half = unary(t, "scale", x, "0.5 x")
    scaled = unary(t, "scale", x, "scaled x")
    square = mul(t, unary(t, "scale", x, "0.044715 x"), x, "scaled square")
    square = unary(t, "shift", square, "1 + square")
    inner = mul(t, scaled, square, "polynomial")
    del scaled, square
    curve = unary(t, "tanh", inner, "tanh")
    del inner
    curve = unary(t, "shift", curve, "1 + tanh")
    return mul(t, half, curve, "activation output")


def _quick_gelu(w: Context, x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x)."""
    return mul(
        w.t, x, unary(w.t, "sigmoid", unary(w.t, "scale", x, "scaled x"), "sigmoid"), "activation output"
    )


def _relu2(w: Context, x: Tensor) -> Tensor:
    """relu(x)^2."""
    return unary(w.t, "pow", unary(w.t, "relu", x, "relu"), "activation output")


def _bloom(w: Context, x: Tensor) -> Tensor:
    """Bloom's own autograd function: saves x alone, and makes the polynomial again in the backward."""

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        held = _evaluated(t, grad, _BLOOM_BACK, "gelu gradient formula")
        result = t.alloc("gradient of gelu's input", grad.shape, grad.dtype, "grad times the derivative")
        held.clear()
        return [result]

    held = _evaluated(w.t, x, _BLOOM_FORWARD, "gelu formula")
    out = w.t.op("gelu", (x,), x.shape, x.dtype, saves=(x,), backward=backward, name="activation output")
    held.clear()
    return out


Operation = tuple[str, tuple[str, ...]]
"""What an operation makes, and which unnamed results it lets go when it has read them."""
_TANH: tuple[Operation, ...] = (
    ("scaled x", ()),
    ("0.044715 x", ()),
    ("0.044715 x x", ("0.044715 x",)),
    ("1 + square", ("0.044715 x x",)),
    ("polynomial", ("scaled x", "1 + square")),
    ("tanh", ("polynomial",)),
)
_BLOOM_FORWARD: tuple[Operation, ...] = (("0.5 x", ()), *_TANH, ("1 + tanh", ("tanh",)))
_BLOOM_BACK: tuple[Operation, ...] = (
    *_TANH,
    ("0.5 x", ()),
    ("tanh tanh", ()),
    ("1 - tanh tanh", ("tanh tanh",)),
    ("0.107 x", ()),
    ("0.107 x x", ("0.107 x",)),
    ("0.798 + 0.107 x x", ("0.107 x x",)),
    ("slope", ("1 - tanh tanh", "0.798 + 0.107 x x")),
    ("left", ("0.5 x", "slope")),
    ("1 + tanh", ()),
    ("right", ("1 + tanh",)),
    ("derivative", ("left", "right")),
)
"""bloom_gelu_forward up to its last product, and bloom_gelu_back, in the order in which Python evaluates
their one-line formulas (transformers 5.24 models/bloom/modeling_bloom.py)."""


def _evaluated(t: Tape, like: Tensor, operations: tuple[Operation, ...], name: str) -> dict[str, Tensor]:
    """What is left of a formula's results, of one tensor's shape and dtype each."""
    held: dict[str, Tensor] = {}
    for made, read in operations:
        held[made] = t.alloc(name, like.shape, like.dtype, "a factor of the formula")
        for each in read:
            del held[each]
    return held


ACTIVATIONS: dict[str, Function] = {
    **{name: _fused("silu") for name in ("silu", "swish")},
    **{name: _fused("gelu") for name in ("gelu", "gelu_pytorch_tanh", "gelu_python")},
    **{name: _fused(name) for name in ("relu", "tanh", "sigmoid")},
    "relu2": _relu2,
    "gelu_new": _new_gelu,
    "gelu_fast": _fast_gelu,
    "quick_gelu": _quick_gelu,
    "gelu_bloom": _bloom,
}
