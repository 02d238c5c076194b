"""What Liger's kernels save, make and write over (liger-kernel 0.8.5 ops/rms_norm.py, swiglu.py, geglu.py,
rope.py, cross_entropy.py): planner/run/fused_kernels.py on the tape.
"""

from __future__ import annotations

from memplan.planner.formula.tape.ops import Grads, cast
from memplan.planner.formula.tape.tape import ENTROPY, GATED, NORM, ROTATED, Node, Tape, Tensor


def rms_norm(
    t: Tape,
    given: Tensor,
    weight: Tensor,
    in_place: bool,
    rows: int,
    copies: bool = False,
    copies_back: bool = False,
) -> Tensor:
    """The norm of (..., H): saves its input, the weight and one fp32 number a row. The gradient is written
    over the incoming one, or into zeros; a trained weight's is summed from `rows` fp32 rows.

    `copies`, `copies_back`: the input or the gradient lies in another order than it is seen in and is
    copied.
    """
    shape, w_shape, w_dtype, w_name = given.shape, weight.shape, weight.dtype, weight.name
    x = t.alloc("input in order", shape, given.dtype, "a contiguous copy") if copies else given
    made = t.alloc("output", shape, given.dtype, "made by Liger's RMSNorm")
    scale = t.alloc("1 / deviation", shape[:-1], "float32", "one per row")

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        if copies_back:
            grad = t.alloc("gradient in order", shape, grad.dtype, "a contiguous copy")
        parts = (
            t.alloc("parts of the weight's gradient", (rows, *w_shape), "float32", "one row a multiprocessor")
            if node.needs(1)
            else None
        )
        result = (
            Tensor(grad.buffer, shape, grad.dtype)
            if in_place
            else t.alloc("gradient of RMSNorm's input", shape, grad.dtype, "zeros first")
        )
        result.viewed = True
        summed = None
        if parts is not None:
            summed = t.alloc(f"{w_name} gradient", w_shape, "float32", "summed over the parts")
            summed = cast(t, summed, w_dtype)
        del parts
        return [result, summed]

    return t.op(
        NORM,
        (given, weight),
        shape,
        given.dtype,
        saves=(x, weight, scale),
        backward=backward,
        alias=made,
    )


def gated_product(t: Tape, gate: Tensor, up: Tensor, copies: bool) -> Tensor:
    """act(gate) * up: saves both, and writes their gradients over them. `copies`: they are halves of one
    tensor, copied apart first.
    """
    shape = gate.shape
    kept = [gate, up]
    if copies:
        kept = [t.alloc("half of the projection", shape, x.dtype, "a contiguous copy") for x in kept]

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        made = [Tensor(buffer, shape, x) for buffer, x in zip(node.held, dtypes, strict=True)]
        for each in made:
            each.viewed = True
        return made

    dtypes = (gate.dtype, up.dtype)
    return t.op(GATED, (gate, up), shape, gate.dtype, saves=kept, backward=backward, name="gated")


def rotated(t: Tape, x: Tensor, tables: tuple[Tensor, Tensor], copies: bool, copies_back: bool) -> Tensor:
    """Queries or keys rotated where they lie. `copies`: they do not lie token by token and are copied so;
    `copies_back`: neither does their gradient.
    """

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        made = (
            t.alloc("gradient in token order", grad.shape, grad.dtype, "a contiguous copy")
            if copies_back
            else Tensor(grad.buffer, grad.shape, grad.dtype)
        )
        made.viewed = True
        return [made]

    moved = t.alloc("in token order", x.shape, x.dtype, "a contiguous copy") if copies else x
    return t.op(ROTATED, (x,), x.shape, x.dtype, saves=tables, backward=backward, alias=moved)


def cross_entropy(t: Tape, logits: Tensor, labels: Tensor | None) -> Tensor:
    """The loss of fp32 logits (B, S, V): saves them, and writes their gradient over them."""
    *front, _ = logits.shape
    shape, dtype, rows = logits.shape, logits.dtype, tuple(front)
    losses = t.alloc("losses", rows, dtype, "one per token")
    scored = t.alloc("scored labels", rows, "bool", "which labels count")

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [Tensor(node.held[0], shape, dtype)]

    labels_in_range = t.alloc("labels in range", rows, "int64", "the largest and the smallest are looked at")
    del labels_in_range, labels
    loss = t.op(ENTROPY, (logits,), (), dtype, saves=(logits,), backward=backward, name="loss")
    del losses, scored
    return loss
