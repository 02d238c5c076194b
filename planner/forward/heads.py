"""What every way to attend shares: heads repeated, folded into the batch, and merged again.

A heads, K key-value heads, D head size. q, k, v are (B, A or K, S, D) views of (B, S, heads, D) memory; a matmul folds B and A into one
dimension, which such a view allows without a copy only where B = 1 (`Walk.single`).
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.forward.walk import Walk
from planner.spec import Attention
from planner.tape.rules import Grads, copy
from planner.tape.tape import Node, Tape, Tensor


@dataclass(slots=True)
class Heads:
    """What attention works on: `key_length` differs from the queries' where a cache or a prefix stands before them."""

    spec: Attention
    query_size: int
    value_size: int
    mask: Tensor | None
    dropout: float
    sinks: Tensor | None = None
    head_major: bool = False  # whether q lies head by head in memory, as concatenation leaves it
    hidden_dtype: str = "bfloat16"  # of the module's input


def repeat(w: Walk, h: Heads, x: Tensor) -> Tensor:
    """repeat_kv: a contiguous copy with A heads (one head is only expanded, without bytes); its gradient is summed over the repeats."""
    b, kv, s, d = x.shape
    if kv == 1:
        return w.t.op(
            "expand",
            (x,),
            (b, h.spec.heads, s, d),
            x.dtype,
            alias=x,
            backward=lambda t, n, g: [t.alloc("gradient of expanded heads", (b, 1, s, d), g.dtype, "summed over the heads")],
        )
    return w.t.op(
        "repeat_kv",
        (x,),
        (b, h.spec.heads, s, d),
        x.dtype,
        name="repeated key or value",
        why="one copy for each query head",
        backward=lambda t, n, g: [t.alloc("gradient of repeated heads", (b, kv, s, d), g.dtype, "summed over the repeats")],
    )


def fold(w: Walk, x: Tensor, contiguous: bool) -> Tensor:
    """The copy that matmul makes to fold batch and heads of a transposed view."""
    return x if contiguous or w.single else copy(w.t, x, "folded copy", "matmul folds batch and heads of a transposed view")


def merge(w: Walk, h: Heads, out: Tensor, contiguous: bool) -> Tensor:
    """(B, A, S, D) back to (B, S, A x D): a copy where the backend wrote head by head."""
    merged = (out.shape[0], out.shape[2], h.spec.heads * h.value_size)
    return copy(w.t, out, "merged heads", "transposed back and made contiguous", merged) if contiguous else out.view(*merged)


def softmax_backward(t: Tape, node: Node, grad: Tensor) -> Grads:
    product = t.alloc("grad * softmax", grad.shape, grad.dtype, "a full-size temporary of the softmax gradient")
    result = t.alloc("gradient of softmax's input", grad.shape, grad.dtype, "the scores' gradient")
    del product
    return [result]
