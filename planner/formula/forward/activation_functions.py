"""Activation functions op by op, as transformers 5.23 activations.py and the bloom modeling file write
them.
"""

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
        held = [
            t.alloc("gelu gradient formula", grad.shape, grad.dtype, "a factor of the gradient formula")
            for _ in range(5)
        ]
        result = t.alloc("gradient of gelu's input", grad.shape, grad.dtype, "grad times the derivative")
        del held
        return [result]

    held = [w.t.alloc("gelu formula", x.shape, x.dtype, "a factor of the formula") for _ in range(2)]
    out = w.t.op("gelu", (x,), x.shape, x.dtype, saves=(x,), backward=backward, name="activation output")
    del held
    return out


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
