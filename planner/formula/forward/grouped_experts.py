"""The experts themselves, once tokens are routed: sorted by expert, multiplied in groups, weighted and
summed.
"""

from __future__ import annotations

from memplan.planner.formula.forward.activation_functions import activation
from memplan.planner.formula.forward.base import STORED
from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.linears import merged
from memplan.planner.formula.symbolic.expr import Sized
from memplan.planner.formula.tape.ops import (
    Grads,
    add_in_place,
    cast,
    mul,
    split,
    unary,
)
from memplan.planner.formula.tape.tape import Node, Shape, Tape, Tensor
from memplan.planner.inputs.spec import Moe
from memplan.planner.tables.gpus import GROUPED_MM


def _grouped(w: Context, moe: Moe, hidden: Tensor, weights: Tensor, indices: Tensor, prefix: str) -> Tensor:
    """grouped_mm_experts_forward: gather rows by expert, up, gate, down, weight, scatter back, sum over the k
    slots.
    """
    t = w.t
    tokens, width = hidden.shape
    rows = tokens * moe.top_k
    full = {name.rpartition(".")[2]: name for name, _ in moe.parameters}
    order = t.alloc("sorted experts", (rows,), "int64", "slots sorted by expert")
    permutation = t.alloc("permutation", (rows,), "int64", "slots sorted by expert")
    selected = _index(w, hidden, permutation, (rows, width), "rows by expert", "gather index")
    slot_weights = _index(w, weights.view(rows), permutation, (rows,), "weights by expert")
    wide = (rows, 2 * moe.intermediate if moe.gated else moe.intermediate)
    up = merged(
        w, full["gate_up_proj" if "gate_up_proj" in full else "up_proj"], prefix
    )  # folded weights live to the end of the call
    bias = _biases(w, full, "gate_up_proj_bias", prefix, order, wide)  # the name holds until the next ones
    states = _grouped_mm(w, selected, up, wide, "up output")
    if bias is not None:
        states = add_in_place(t, states, bias)
    states = _gate(w, moe, states)
    down = merged(w, full["down_proj"], prefix)
    bias = _biases(w, full, "down_proj_bias", prefix, order, (rows, width))
    states = _grouped_mm(w, states, down, (rows, width), "down output")
    if bias is not None:
        states = add_in_place(t, states, bias)
    weighted = mul(t, states, slot_weights.view(rows, 1), "weighted output")
    inverse = t.alloc("inverse permutation", (rows,), "int64", "back to the tokens' order")
    weighted = _index(w, weighted, inverse, (rows, width), "output by token")
    whole = weighted.shape
    summed = t.op(
        "sum",
        (weighted,),
        (tokens, width),
        weighted.dtype,
        name="sum over the slots",
        backward=lambda t, n, g: [Tensor(g.buffer, whole, g.dtype)],
    )
    return cast(t, summed, hidden.dtype)


def _index(w: Context, x: Tensor, index: Tensor, shape: Shape, name: str, saved: str | None = None) -> Tensor:
    """x[index]: saves the index; its gradient is added into zeros of x's shape, after a sort of the indices
    (index_put_).
    """
    t = w.t
    whole, count = x.shape, index.shape
    kept = index if saved is None else t.alloc(saved, index.shape, "int64", "which row each slot reads")

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        result = t.alloc(
            "gradient of a gather's input", whole, grad.dtype, "zeros that the rows are added into"
        )
        held = [
            t.alloc("sorted indices", count, "int64", "index_put_ with accumulation sorts first")
            for _ in range(3)
        ]
        del held
        return [result]

    return t.op("index", (x,), shape, x.dtype, saves=(kept,), name=name, backward=backward)


def _grouped_mm(w: Context, x: Tensor, weight: Tensor, shape: Shape, name: str) -> Tensor:
    """One product for each expert's rows: saves the rows where the experts are trained, the weights where the
    rows want a gradient. Below GROUPED_MM, transformers' own loop saves both and makes both gradients.
    """
    t = w.t
    loop = w.device.kind == "cuda" and w.device.capability < GROUPED_MM
    packed = weight.dtype in STORED  # its kernels' own copies are not counted, and said so
    x = x if packed else cast(t, x, weight.dtype)
    x_shape, w_shape, w_name = x.shape, weight.shape, weight.name

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        grads: list[Tensor | None] = [None, None]
        if loop or node.needs(0):
            grads[0] = t.alloc(
                "gradient of the experts' input", x_shape, grad.dtype, "grad @ weight, expert by expert"
            )
        if loop or node.needs(1):
            grads[1] = t.alloc(f"{w_name} gradient", w_shape, grad.dtype, "of all experts, used or not")
        return grads

    saves = [saved for saved, other in ((x, weight), (weight, x)) if loop or other.requires_grad]
    return t.op("grouped_mm", (x, weight), shape, x.dtype, saves=saves, backward=backward, name=name)


def _biases(
    w: Context, full: dict[str, str], name: str, prefix: str, order: Tensor, shape: Shape
) -> Tensor | None:
    """The bias of each row's expert, where the experts have biases (gpt-oss)."""
    return _index(w, w.weight(prefix + full[name]), order, shape, "bias by row") if name in full else None


def _gate(w: Context, moe: Moe, states: Tensor) -> Tensor:
    """act(gate) * up on the two halves; gpt-oss's clamped form on interleaved ones."""

    t = w.t
    if not moe.gated:
        return activation(moe.activation)(w, states)
    half: tuple[Sized, ...] = (states.shape[0], moe.intermediate)
    gate, up = split(t, states, (half, half))
    del states
    if moe.activation != "clamped_swiglu":
        return mul(t, activation(moe.activation)(w, gate), up, "gated")
    gate = unary(t, "clamp", gate, "clamped gate")
    up = unary(t, "clamp", up, "clamped up")
    glu = mul(t, gate, unary(t, "sigmoid", unary(t, "scale", gate, "scaled gate"), "sigmoid"), "glu")
    return mul(t, unary(t, "shift", up, "up + 1"), glu, "gated")
