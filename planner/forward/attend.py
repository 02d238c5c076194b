"""Attention on the tape: eager scores, and the backends that CUDA chooses for scaled_dot_product_attention.

A heads, K key-value heads, D head size. q, k, v are (B, A or K, S, D) views of (B, S, heads, D) memory; a matmul folds B and A into one
dimension, which such a view allows without a copy only where B = 1 (`Walk.single`).

Sources: transformers 5.23 integrations/sdpa_attention.py and models/llama/modeling_llama.py eager_attention_forward; torch 2.13
aten/src/ATen/native/transformers/{attention.cpp, cuda/sdp_utils.cpp, cuda/attention_backward.cu, cuda/flash_attn/flash_api.cpp}.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planner.expr import Sized, round_up
from planner.forward.walk import Walk
from planner.spec import Attention
from planner.tape.rules import Grads, add, bmm, cast, concatenate, copy, dropout, mul, part_of, softmax_fp32, unary
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


def attend(w: Walk, h: Heads, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    """The attention's output (B, S, A x D_value) and, for eager, the probabilities that the module returns beside it."""
    if eager(w, h.spec):
        return _eager(w, h, q, k, v)
    backend = choose(w, h, w.auto or q.dtype)
    if h.spec.heads != h.spec.kv_heads and not native_gqa(w, h, backend):
        k, v = _repeat(w, h, k), _repeat(w, h, v)
    low = [w.lower(x) for x in (q, k, v)]
    return BACKENDS[backend](w, h, *low), None


def eager(w: Walk, spec: Attention) -> bool:
    """Whether scores are made op by op: asked for, or the class has no SDPA path (capped scores, sinks): transformers falls back."""
    return w.setup.attention == "eager" or (w.setup.attention.startswith("sdpa") and not spec.sdpa)


def native_gqa(w: Walk, h: Heads, backend: str) -> bool:
    """Whether K and V keep their own heads (use_gqa_in_sdpa): no mask, equal head sizes up to 256. Forced `efficient` repeats them."""
    if w.setup.attention == "flash_attention_2" or h.spec.kv == "broadcast":
        return True
    return h.mask is None and h.query_size == h.value_size <= 256 and w.setup.attention != "sdpa-efficient"


def choose(w: Walk, h: Heads, dtype: str) -> str:
    """The backend that CUDA takes: the first whose filters accept the call; what a setup forces is taken."""
    forced = w.setup.attention.removeprefix("sdpa").removeprefix("-")
    if w.setup.attention == "flash_attention_2":
        return "flash"
    if forced:
        return forced
    if h.spec.kv == "broadcast":
        return "math"
    half = dtype in ("bfloat16", "float16")
    ampere = w.device.capability >= (8, 0)
    grouped = h.spec.heads != h.spec.kv_heads and native_gqa(w, h, "efficient")
    equal = h.query_size == h.value_size
    if (
        w.device.capability[0] in (9, 10)
        and half
        and max(h.query_size, h.value_size) <= 128
        and h.query_size % 8 == 0
        and h.value_size % 8 == 0
    ):
        return "cudnn"
    if half and ampere and h.mask is None and equal and h.query_size <= 256:
        return "flash"
    align = 8 if half and w.device.capability >= (7, 0) else 4 if ampere else 1
    known = half if ampere else dtype == "float16"
    if (known or dtype == "float32") and not grouped and h.query_size % align == 0 and h.value_size % align == 0:
        return "efficient"
    return "math"


def _repeat(w: Walk, h: Heads, x: Tensor) -> Tensor:
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


def _fold(w: Walk, x: Tensor, contiguous: bool) -> Tensor:
    """The copy that matmul makes to fold batch and heads of a transposed view."""
    return x if contiguous or w.single else copy(w.t, x, "folded copy", "matmul folds batch and heads of a transposed view")


def _merge(w: Walk, h: Heads, out: Tensor, contiguous: bool) -> Tensor:
    """(B, A, S, D) back to (B, S, A x D): a copy where the backend wrote head by head."""
    merged = (out.shape[0], out.shape[2], h.spec.heads * h.value_size)
    return copy(w.t, out, "merged heads", "transposed back and made contiguous", merged) if contiguous else out.view(*merged)


def _eager(w: Walk, h: Heads, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    t = w.t
    repeated = h.spec.kv_heads not in (1, h.spec.heads)
    if h.spec.heads != h.spec.kv_heads:
        keys, values = _repeat(w, h, k), _repeat(w, h, v)
    else:
        keys, values = k, v
    b, a, s, _ = q.shape
    square = (b, a, s, keys.shape[2])
    scores = unary(t, "scale", bmm(t, _fold(w, w.lower(q), False), _fold(w, w.lower(keys), repeated), square, "raw scores"), "scores")
    if h.spec.softcap is not None:
        scores = unary(t, "scale", scores, "scores / softcap")
        scores = unary(t, "tanh", scores, "tanh of scores")
        scores = unary(t, "scale", scores, "capped scores")
    if h.mask is not None:
        scores = add(t, scores, h.mask, "masked scores", square)
    if h.sinks is not None:
        scores = _with_sinks(w, h, scores)
    else:
        scores = cast(t, softmax_fp32(t, scores, w.device.kind), q.dtype, "attention probabilities in 16 bit")
    scores = dropout(t, scores, h.dropout)
    out = bmm(t, w.lower(scores), _fold(w, w.lower(values), repeated), (b, a, s, h.value_size), "attention output")
    out = _merge(w, h, out, True)
    return out, scores


def _with_sinks(w: Walk, h: Heads, scores: Tensor) -> Tensor:
    """gpt-oss: one more column of learned logits, the maximum taken off, softmax in the scores' dtype, the column dropped."""
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
        "softmax", (combined,), wide, combined.dtype, saves_output=True, name="attention probabilities", backward=_softmax_backward
    )
    return part_of(t, plain, scores.shape)


def _softmax_backward(t: Tape, node: Node, grad: Tensor) -> Grads:
    product = t.alloc("grad * softmax", grad.shape, grad.dtype, "a full-size temporary of the softmax gradient")
    result = t.alloc("gradient of softmax's input", grad.shape, grad.dtype, "the scores' gradient")
    del product
    return [result]


def _fused(
    w: Walk,
    h: Heads,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    statistics: Sized,
    kind: str,
    scratch: Callable[[Tape, Tensor, Tensor, Tensor], list[Tensor]],
) -> Tensor:
    """A fused backend: saves q, k, v, its output and a log-sum-exp per row; its backward makes dq, dk, dv and `scratch`."""
    t = w.t
    b, a, s, _ = q.shape
    lse = t.alloc("log-sum-exp", (b, a, statistics), "float32", "one per query and head")
    shapes, dtype = (q.shape, k.shape, v.shape), q.dtype

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        grads = [t.alloc(f"gradient of {n}", shape, dtype, f"{kind} backward") for n, shape in zip(("q", "k", "v"), shapes, strict=True)]
        held = scratch(t, *grads)
        del held
        return grads

    out = t.op(
        f"{kind} attention",
        (q, k, v),
        (b, a, s, h.value_size),
        dtype,
        saves=(q, k, v, lse),
        saves_output=True,
        backward=backward,
        name="attention output",
    )
    return _merge(w, h, out, False)


def _flash(w: Walk, h: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention 2: an fp32 dq accumulator and row sums; with grouped heads also dk and dv for every query head (mha_bwd)."""

    def scratch(t: Tape, dq: Tensor, dk: Tensor, dv: Tensor) -> list[Tensor]:
        b, a, s, d = dq.shape
        rows = round_up(s, 128)
        held = [
            t.alloc("softmax_d", (b, a, rows), "float32", "row sums of the gradient"),
            t.alloc("dq accumulator", (b, rows, a, round_up(d, 32)), "float32", "dq is summed in fp32"),
        ]
        if a != dk.shape[1]:
            held += [t.alloc(f"expanded d{n}", (b, s, a, d), dq.dtype, "one per query head before the sum over groups") for n in ("k", "v")]
        return held

    return _fused(w, h, q, k, v, q.shape[2], "flash", scratch)


def _efficient(w: Walk, h: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Memory-efficient attention: statistics padded to 32 rows; its backward keeps an fp32 dq for 16-bit inputs and a delta per row."""
    t = w.t
    bias = None if h.mask is None else _aligned(w, _additive(w, h.mask, q.dtype))

    def scratch(t: Tape, dq: Tensor, dk: Tensor, dv: Tensor) -> list[Tensor]:
        b, a, s, d = dq.shape
        held = [t.alloc("delta", (b, a, s), "float32", "row sums of the gradient")]
        if dq.dtype != "float32":
            held.append(t.alloc("dq accumulator", (b, a, round_up(s, 64), round_up(d, 64)), "float32", "dq is summed in fp32"))
        return held

    out = _fused(w, h, q, k, v, round_up(q.shape[2], 32), "efficient", scratch)
    if bias is not None and out.node is not None:
        t.save(out.node, bias)
    return out


def _cudnn(w: Walk, h: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """cuDNN's attention: its backward keeps dq and row sums in fp32, in one allocation of the frontend."""
    t = w.t
    bias = None if h.mask is None else _additive(w, h.mask, q.dtype)

    def scratch(t: Tape, dq: Tensor, dk: Tensor, dv: Tensor) -> list[Tensor]:
        b, a, s, d = dq.shape
        return [t.alloc("dq accumulator and row sums", (b, a, s, d + 1), "float32", "dq is summed in fp32")]

    out = _fused(w, h, q, k, v, q.shape[2], "cudnn", scratch)
    if bias is not None and out.node is not None:
        t.save(out.node, bias)
    return out


def _additive(w: Walk, mask: Tensor, dtype: str) -> Tensor:
    """convert_boolean_attn_mask: a mask of the query's dtype, made in every call and saved by it; a float mask is taken as it is."""
    if mask.dtype != "bool":
        return mask
    inverted = w.t.alloc("inverted mask", mask.shape, "bool", "logical_not of the mask")
    made = w.t.alloc("additive mask", mask.shape, dtype, "the boolean mask in the query's dtype")
    del inverted
    return made


def _aligned(w: Walk, mask: Tensor) -> Tensor:
    """The efficient kernel's rows of 8: a boolean mask's additive copy is made again with its rows padded where S is no multiple of 8."""
    if mask.shape[1] != 1:
        return mask  # ALiBi's mask of all heads is shared by the layers; its padded copies where S is no multiple of 8 are left out
    *front, columns = mask.shape
    return w.t.alloc("additive mask", (*front, round_up(columns, 8)), mask.dtype, "rows padded to a multiple of 8")


def _math(w: Walk, h: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The composite: 16-bit inputs in fp32, q and k scaled, scores in full, the causal mask made as S x S, softmax, product, cast back."""
    t, a = w.t, h.spec.heads
    dtype = q.dtype
    b, _, s, _ = q.shape
    square = (b, a, s, k.shape[2])
    queries, keys, values = (cast(t, x, "float32") for x in (q, k, v))
    queries = unary(t, "scale", queries, "scaled q")
    bias = h.mask
    if bias is None:
        causal = t.alloc("causal mask", (s, s), "bool", "is_causal on the math path")
        bias = t.alloc("additive causal mask", (s, s), "float32", "the causal mask as numbers")
        del causal
    else:
        bias = _additive(w, bias, dtype)
    shared = k.shape[1] != a
    if shared and h.spec.kv != "broadcast":
        keys, values = _interleave(w, h, keys), _interleave(w, h, values)
    keys = unary(t, "scale", keys, "scaled k")
    if shared and h.spec.kv == "broadcast":
        keys, values = _repeat(w, h, keys), _repeat(w, h, values)
    own = shared and h.spec.kv != "broadcast"  # rows of one head lie together: nothing to fold
    scores = bmm(t, _fold(w, queries, False), _fold(w, keys, own), square, "scores")
    scores = _safe_softmax(t, scores)
    scores = dropout(t, scores, h.dropout)
    out = bmm(t, scores, _fold(w, values, own), (b, a, s, h.value_size), "attention output in fp32")
    out = cast(t, out, dtype)
    extra = cast(t, scores.detach(), dtype)
    del extra, scores, bias
    return _merge(w, h, out, True)


def _interleave(w: Walk, h: Heads, x: Tensor) -> Tensor:
    """repeat_interleave, which enable_gqa means on the math path: a copy for each query head."""
    b, kv, s, d = x.shape
    return w.t.op(
        "repeat_interleave",
        (x,),
        (b, h.spec.heads, s, d),
        x.dtype,
        name="repeated key or value",
        why="one copy for each query head",
        backward=lambda t, n, g: [t.alloc("gradient of repeated heads", (b, kv, s, d), g.dtype, "summed over the repeats")],
    )


def _safe_softmax(t: Tape, scores: Tensor) -> Tensor:
    """_safe_softmax: a softmax, the rows in which everything is masked, and a choice between them (attention.cpp)."""
    held = [t.alloc("softmax before masking", scores.shape, scores.dtype, "rows in which all is masked become 0 afterwards"),
            t.alloc("masked elements", scores.shape, "bool", "which elements are masked")]  # fmt: skip
    made = t.op(
        "softmax", (scores,), scores.shape, scores.dtype, saves_output=True, name="attention probabilities", backward=_softmax_backward
    )
    del held
    return made


BACKENDS: dict[str, Callable[[Walk, Heads, Tensor, Tensor, Tensor], Tensor]] = {
    "flash": _flash,
    "efficient": _efficient,
    "cudnn": _cudnn,
    "math": _math,
}
_ = mul
