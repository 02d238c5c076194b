"""What every way to attend shares: heads repeated, folded into the batch, and merged again.

A heads, K key-value heads, D head size. q, k, v are (B, A or K, S, D) views of (B, S, heads, D) memory; a
matmul folds B and A into one dimension, which such a view allows without a copy only where B = 1
(`Context.single`).
"""

from __future__ import annotations

from dataclasses import dataclass

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.tape.ops import Grads, copy, part_of
from memplan.planner.formula.tape.tape import Node, Shape, Tape, Tensor
from memplan.planner.inputs.spec import Attention
from memplan.planner.tables.sdp import EFFICIENT_GQA


@dataclass(slots=True)
class Heads:
    """What attention works on: `key_length` differs from the queries' where a cache or a prefix stands before
    them.
    """

    spec: Attention
    query_size: int
    value_size: int
    mask: Tensor | None
    dropout: float
    sinks: Tensor | None = None
    head_major: bool = False  # whether q lies head by head in memory, as concatenation leaves it
    hidden_dtype: str = "bfloat16"  # of the module's input
    repeated: bool = False  # whether a cache made keys and values, whose rows of one head lie together


def cut_falcon(w: Context, spec: Attention, fused: Tensor) -> list[Tensor]:
    """Falcon's q, k, v of one matrix, each (B, S, heads x D): keys and values are indexed, which copies them;
    groups are spread over their query heads at once, and queries between them are brought together
    (modeling_falcon.py _split_heads).
    """
    t, d = w.t, spec.head_dim
    front, groups = fused.shape[:-1], spec.kv_heads
    query = part_of(t, fused, (*front, spec.heads * d))
    if spec.kv == "grouped":  # as many keys as queries: slices of the one tensor
        return [query, *(part_of(t, fused, query.shape) for _ in range(2))]
    key, value = (_indexed(t, fused, (*front, groups * d), name) for name in ("key", "value"))
    if spec.kv == "broadcast" or groups == spec.heads:
        return [query, key, value]
    narrow = key.shape

    def spread(x: Tensor, name: str) -> Tensor:
        return t.op(
            "spread",
            (x,),
            query.shape,
            x.dtype,
            name=name,
            why="one copy for each query head",
            backward=lambda t, n, g: [
                t.alloc("gradient of spread heads", narrow, g.dtype, "summed over the copies")
            ],
        )

    return [
        copy(t, query, "queries brought together"),
        spread(key, "spread key"),
        spread(value, "spread value"),
    ]


def _indexed(t: Tape, x: Tensor, shape: Shape, name: str) -> Tensor:
    """x[..., [i], :]: a copy; its gradient is put into zeros of the whole shape."""
    whole, index = x.shape, t.alloc("index", (1,), "int64", "the list as a tensor")

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [t.alloc("gradient of an indexed tensor", whole, grad.dtype, "zeros but for the indexed part")]

    return t.op(
        "index",
        (x,),
        shape,
        x.dtype,
        saves=(index,),
        name=name,
        why="indexed by a list, which copies",
        backward=backward,
    )


def native_gqa(w: Context, spec: Attention, mask: Tensor | None) -> bool:
    """Whether K and V keep their own heads (use_gqa_in_sdpa): no mask, equal head sizes up to 256.
    transformers up to 4.48 repeated them (4.48.1 integrations/sdpa_attention.py); so is forced `efficient`
    taken before torch 2.14, whose kernel refuses grouped heads: the published T4 runs expanded them.
    """
    if w.setup.attention == "flash_attention_2" or spec.kv == "broadcast":
        return True
    before = w.setup.attention == "sdpa-efficient" and w.device.torch < EFFICIENT_GQA
    if w.setup.transformers != "5" or before:
        return False
    return mask is None and spec.head_dim == (spec.value_dim or spec.head_dim) <= 256


def repeat(w: Context, h: Heads, x: Tensor) -> Tensor:
    """repeat_kv: a contiguous copy with A heads (one head is only expanded, without bytes); its gradient is
    summed over the repeats.
    """
    b, kv, s, d = x.shape
    if kv == 1:
        return w.t.op(
            "expand",
            (x,),
            (b, h.spec.heads, s, d),
            x.dtype,
            alias=x,
            backward=lambda t, n, g: [
                t.alloc("gradient of expanded heads", (b, 1, s, d), g.dtype, "summed over the heads")
            ],
        )
    return w.t.op(
        "repeat_kv",
        (x,),
        (b, h.spec.heads, s, d),
        x.dtype,
        name="repeated key or value",
        why="one copy for each query head",
        backward=lambda t, n, g: [
            t.alloc("gradient of repeated heads", (b, kv, s, d), g.dtype, "summed over the repeats")
        ],
    )


def fold(w: Context, x: Tensor, contiguous: bool) -> Tensor:
    """The copy that matmul makes to fold batch and heads of a transposed view."""
    return (
        x
        if contiguous or w.single
        else copy(w.t, x, "folded copy", "matmul folds batch and heads of a transposed view")
    )


def merge(w: Context, h: Heads, out: Tensor, contiguous: bool) -> Tensor:
    """(B, A, S, D) back to (B, S, A x D): a copy where the backend wrote head by head."""
    merged = (out.shape[0], out.shape[2], h.spec.heads * h.value_size)
    return (
        copy(w.t, out, "merged heads", "transposed back and made contiguous", merged)
        if contiguous
        else out.view(*merged)
    )


def softmax_backward(t: Tape, node: Node, grad: Tensor) -> Grads:
    """Backward of softmax on CUDA: the gradient of its input, and a temporary of the same size."""
    product = t.alloc(
        "grad * softmax", grad.shape, grad.dtype, "a full-size temporary of the softmax gradient"
    )
    result = t.alloc("gradient of softmax's input", grad.shape, grad.dtype, "the scores' gradient")
    del product
    return [result]
