"""Attention op by op, as each family's eager code writes it (transformers 5.23): scores in full, softmax,
product.
"""

from __future__ import annotations

from collections.abc import Callable

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.heads import Heads, fold, merge, repeat, softmax_backward
from memplan.planner.formula.tape.layers import bmm, softmax_fp32
from memplan.planner.formula.tape.ops import Grads, add, cast, concatenate, copy, dropout, part_of, unary
from memplan.planner.formula.tape.tape import Node, Tape, Tensor
from memplan.planner.inputs.spec import Attention

Attended = tuple[
    Tensor, Tensor, list[Tensor]
]  # the output, the probabilities that the module returns, and its other local variables


def eager(w: Context, spec: Attention) -> bool:
    """Whether scores are made op by op: asked for, or the class has no SDPA path (capped scores, sinks):
    transformers falls back.
    """
    return w.setup.attention == "eager" or (w.setup.attention.startswith("sdpa") and not spec.sdpa)


def attend_eagerly(w: Context, h: Heads, q: Tensor, k: Tensor, v: Tensor) -> Attended:
    """The output (B, S, A x D_value), the probabilities, and what stays kept_alive until the attention module
    returns.
    """
    return WRITTEN[h.spec.eager](w, h, q, k, v)


def _shared(w: Context, h: Heads, q: Tensor, k: Tensor, v: Tensor) -> Attended:
    """eager_attention_forward of models/llama/modeling_llama.py, which most families share."""
    t = w.t
    repeated = h.spec.kv_heads not in (1, h.spec.heads) or (h.repeated and h.spec.kv_heads == h.spec.heads)
    if h.spec.heads != h.spec.kv_heads:
        keys, values = repeat(w, h, k), repeat(w, h, v)
    else:
        keys, values = k, v
    b, a, s, _ = q.shape
    square = (b, a, s, keys.shape[2])
    scores = unary(
        t,
        "scale",
        bmm(
            t,
            fold(w, w.autocast_low(q), False),
            fold(w, w.autocast_low(keys), repeated),
            square,
            "raw scores",
        ),
        "scores",
    )
    if h.spec.softcap is not None:
        scores = unary(t, "scale", scores, "scores / softcap")
        scores = unary(t, "tanh", scores, "tanh of scores")
        scores = unary(t, "scale", scores, "capped scores")
    if h.mask is not None:
        scores = add(t, scores, h.mask, "masked scores", square)
    if h.sinks is not None:
        scores = cast(t, _with_sinks(w, h, scores), v.dtype, "attention probabilities in 16 bit")
    else:
        scores = cast(t, softmax_fp32(t, scores, w.device.kind), q.dtype, "attention probabilities in 16 bit")
    scores = dropout(t, scores, h.dropout)
    out = bmm(
        t,
        w.autocast_low(scores),
        fold(w, w.autocast_low(values), repeated),
        (b, a, s, h.value_size),
        "attention output",
    )
    out = merge(w, h, out, True)
    return out, scores, []


def _with_sinks(w: Context, h: Heads, scores: Tensor) -> Tensor:
    """gpt-oss: one more column of learned logits, the maximum taken off, softmax in the scores' dtype, the
    column dropped.
    """
    t = w.t
    assert h.sinks is not None
    b, a, s, keys = scores.shape
    wide = (b, a, s, keys + 1)
    combined = concatenate(t, (scores, h.sinks.view(b, a, s, 1)), wide, "scores and sinks")
    chosen = t.alloc("places of the maxima", (b, a, s, 1), "int64", "one per query and head")
    largest = t.op(
        "max",
        (combined,),
        (b, a, s, 1),
        scores.dtype,
        saves=(chosen,),
        name="row maxima",
        backward=lambda t, n, g: [t.alloc("gradient of max's input", wide, g.dtype, "scattered into zeros")],
    )
    del chosen
    combined = add(t, combined, largest, "scores less maximum")
    plain = t.op(
        "softmax",
        (combined,),
        wide,
        combined.dtype,
        saves_output=True,
        name="attention probabilities",
        backward=softmax_backward,
    )
    return part_of(t, plain, scores.shape)


def _bloom(w: Context, h: Heads, q: Tensor, k: Tensor, v: Tensor) -> Attended:
    """BLOOM: heads folded first, one product that adds the ALiBi biases; the scores stay kept_alive."""
    t = w.t
    b, a, s, _ = q.shape
    square = (b, a, s, k.shape[2])
    q, k, v = (fold(w, x, h.repeated and x is not q) for x in (q, k, v))
    raw = _scaled_product(t, w.autocast_low(q), w.autocast_low(k), square)
    scores = add(t, raw, h.mask, "masked scores", square) if h.mask is not None else raw
    probabilities = cast(
        t, softmax_fp32(t, scores, w.device.kind), q.dtype, "attention probabilities in 16 bit"
    )
    probabilities = dropout(t, probabilities, h.dropout)
    values = w.autocast_low(v)  # C++ casts the last argument of an op first
    out = bmm(t, w.autocast_low(probabilities), values, (b, a, s, h.value_size), "attention output")
    del values
    return merge(w, h, out, True), probabilities, [scores, raw, v, k, q]  # go from the list's end on


def _scaled_product(t: Tape, a: Tensor, b: Tensor, shape: tuple[object, ...]) -> Tensor:
    """baddbmm with a factor: the gradient of each side is made and then multiplied."""
    shapes = (a.shape, b.shape)

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        grads: list[Tensor | None] = []
        for i, shape in enumerate(shapes):
            made = (
                t.alloc("gradient of a matmul's input", shape, grad.dtype, "grad @ the other factor")
                if node.needs(i)
                else None
            )
            grads.append(
                t.alloc("gradient of a matmul's input", shape, grad.dtype, "times the factor")
                if made is not None
                else None
            )
            del made
        return grads

    saves = ([a] if b.requires_grad else []) + ([b] if a.requires_grad else [])
    return t.op("baddbmm", (a, b), shape, a.dtype, saves=saves, backward=backward, name="raw scores")  # type: ignore[arg-type]


def _gptj(w: Context, h: Heads, q: Tensor, k: Tensor, v: Tensor) -> Attended:
    """GPT-J: products of fp32 copies of queries and keys, softmax in the scores' dtype, which autocast makes
    fp32 (transformers 5.24 models/gptj/modeling_gptj.py eager_attention_forward).
    """
    t = w.t
    b, a, s, _ = q.shape
    square = (b, a, s, k.shape[2])
    queries, keys = cast(t, q, "float32", "fp32 copy of q"), cast(t, k, "float32", "fp32 copy of k")
    scores = bmm(
        t,
        fold(w, w.autocast_low(queries), False),
        fold(w, w.autocast_low(keys), h.repeated),
        square,
        "raw scores",
    )
    del queries, keys
    scores = unary(t, "scale", scores, "scores")
    if h.mask is not None:
        scores = add(t, scores, h.mask, "masked scores", square)
    wide = w.autocast_fp32(scores)
    scores = t.op(
        "softmax",
        (wide,),
        square,
        wide.dtype,
        saves_output=True,
        name="attention probabilities",
        backward=softmax_backward,
    )
    del wide
    scores = dropout(t, cast(t, scores, v.dtype, "attention probabilities in 16 bit"), h.dropout)
    out = bmm(
        t,
        w.autocast_low(scores),
        fold(w, w.autocast_low(v), h.repeated),
        (b, a, s, h.value_size),
        "attention output",
    )
    return merge(w, h, out, True), scores, []


def _falcon(w: Context, h: Heads, q: Tensor, k: Tensor, v: Tensor) -> Attended:
    """Falcon: softmax in the hidden states' dtype, scores scaled in place; with ALiBi fp32 scores, each step
    of them kept_alive.
    """
    t = w.t
    b, a, s, _ = q.shape
    square = (b, a, s, k.shape[2])
    repeated = h.repeated and k.shape[1] == a
    if k.shape[1] != a:
        k, v = repeat(w, h, k), repeat(w, h, v)
    raw = bmm(
        t, fold(w, w.autocast_low(q), False), fold(w, w.autocast_low(k), repeated), square, "raw scores"
    )
    kept_alive: list[Tensor] = []
    if h.spec.alibi:
        scores = cast(t, raw, "float32", "fp32 scores")
        kept_alive = [raw, scores]
        scores = copy(t, scores, "scores with ALiBi")
        kept_alive.append(scores)
    else:
        scores = raw
    del raw
    scores = _in_place(t, scores)
    wide = cast(
        t, scores if h.mask is None else add(t, scores, h.mask, "masked scores", square), h.hidden_dtype
    )
    probabilities = t.op(
        "softmax",
        (wide,),
        square,
        wide.dtype,
        saves_output=True,
        name="attention probabilities",
        backward=softmax_backward,
    )
    del wide, scores
    probabilities = dropout(t, probabilities, h.dropout)
    out = bmm(
        t,
        w.autocast_low(probabilities),
        fold(w, w.autocast_low(v), repeated),
        (b, a, s, h.value_size),
        "attention output",
    )
    return merge(w, h, out, True), probabilities, kept_alive


def _in_place(t: Tape, x: Tensor) -> Tensor:
    """x *= number."""

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [t.alloc("gradient of scale's input", grad.shape, grad.dtype, "grad times the number")]

    return t.op("scale_", (x,), x.shape, x.dtype, alias=x, backward=backward)


WRITTEN: dict[str, Callable[[Context, Heads, Tensor, Tensor, Tensor], Attended]] = {
    "shared": _shared,
    "bloom": _bloom,
    "gptj": _gptj,
    "falcon": _falcon,
}
