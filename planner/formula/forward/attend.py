"""Attention on the tape: the backends that CUDA chooses for scaled_dot_product_attention. Shapes as in
heads.py.

Sources: transformers 5.23 integrations/sdpa_attention.py; torch 2.13
aten/src/ATen/native/transformers/{attention.cpp, cuda/sdp_utils.cpp, cuda/attention_backward.cu,
cuda/flash_attn/flash_api.cpp}.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.eager import attend_eagerly, eager
from memplan.planner.formula.forward.heads import Heads, fold, merge, native_gqa, repeat, softmax_backward
from memplan.planner.formula.symbolic.expr import Sized, exceeds, round_up, total
from memplan.planner.formula.tape.layers import bmm
from memplan.planner.formula.tape.ops import Grads, cast, dropout, unary
from memplan.planner.formula.tape.tape import Node, Tape, Tensor
from memplan.planner.tables import sdp
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.sdp import FORCED, Asked, refusal, refuses_flash2, refuses_on_cpu


def attend(
    w: Context, h: Heads, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """The output (B, S, A x D_value) and, for eager, the probabilities that the module returns beside it and
    its local variables.
    """
    if eager(w, h.spec):
        return attend_eagerly(w, h, q, k, v)
    kv_heads = h.spec.kv_heads
    if h.spec.heads != kv_heads and not native_gqa(w, h.spec, h.mask):
        if w.before != 0:
            return _packed(w, h, q, k, v)
        k, v, kv_heads = repeat(w, h, k), repeat(w, h, v), h.spec.heads
    backend = choose(w, h, q, k, v, kv_heads)
    # autocast copies the last argument first (GCC's order of evaluation), and its copies go with the call
    v, k = w.autocast_low(v), w.autocast_low(k)
    out = BACKENDS[backend](w, h, w.autocast_low(q), k, v)
    del k, v
    by_head = backend == "math" or (
        backend != "efficient" and h.head_major
    )  # how the output lies in memory: as q does, or token by token
    return merge(w, h, out, by_head), None, []


def _packed(
    w: Context, h: Heads, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """One query token behind a cache: the heads of a group are the queries of one head, and no key is
    repeated (transformers 5.24 integrations/sdpa_attention.py pack_gqa).
    """
    (b, _, _, size), groups = q.shape, h.spec.kv_heads
    of_groups = replace(h, spec=replace(h.spec, heads=groups))
    packed = q.view(b, groups, h.spec.heads // groups, size)
    out, probabilities, local = attend(w, of_groups, packed, k, v)
    return out.view(b, 1, h.spec.heads * h.value_size), probabilities, local


def choose(w: Context, h: Heads, q: Tensor, k: Tensor, v: Tensor, kv_heads: int) -> str:
    """The backend that the device takes for these tensors. Raises UsageError where CUDA refuses the one that
    a setup forces.
    """
    dtype = w.auto or (q.dtype if q.dtype == k.dtype == v.dtype else "mixed")
    if (
        w.device.kind == "cpu"
    ):  # aten/src/ATen/native/transformers/sdp_utils_cpp.cpp: one fused kernel, without dropout
        if refused := refuses_on_cpu(w.setup.attention, h.dropout):
            raise UsageError(refused)
        return (
            "math"
            if h.dropout or w.setup.attention == "sdpa-math"
            else "flash"
            if h.mask is None
            else "efficient"
        )
    if w.setup.attention == "flash_attention_2":
        read = (
            w.setup.weight_dtype if dtype == "float32" and not w.auto else dtype
        )  # integrations/flash_attention.py get_target_dtype
        refused = refuses_flash2(w.device.capability, read, h.query_size)
        if h.spec.alibi or h.spec.sinks:
            refused = (
                f"transformers has no flash_attention_2 with {'ALiBi' if h.spec.alibi else 'sinks'}: use "
                "--attention eager"
            )
        if refused:
            raise UsageError(refused)
        return "flash"
    asked = Asked(
        capability=w.device.capability,
        dtype=dtype,
        heads=(h.spec.heads, kv_heads, kv_heads),
        sizes=(h.query_size, h.query_size, h.value_size),
        masked=h.mask is not None,
        dropout=h.dropout,
        causal=h.mask is None,
        gqa=h.spec.heads != kv_heads and h.spec.kv != "broadcast",
        trains=w.t.grad_enabled and any(x.requires_grad for x in (q, k, v)),
        torch=w.device.torch,
    )
    forced = FORCED.get(w.setup.attention)
    backend = sdp.choose(asked, forced)
    if backend is None:
        raise UsageError(refusal(asked, str(forced)))
    return backend


def _fused(
    w: Context,
    h: Heads,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    statistics: Sized,
    kind: str,
    scratch: Callable[[Tape, Tensor, Tensor, Tensor], list[Tensor]],
) -> Tensor:
    """A fused backend: saves q, k, v, its output and a log-sum-exp per row; its backward makes dq, dk, dv and
    `scratch`.
    """
    t = w.t
    b, a, s, _ = q.shape
    why = f"made by {kind} attention"
    made = t.alloc("attention output", (b, a, s, h.value_size), q.dtype, why)  # before the sums
    lse = t.alloc("log-sum-exp", (b, a, statistics), "float32", "one per query and head")
    shapes, dtype = (q.shape, k.shape, v.shape), q.dtype

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        grads = [
            t.alloc(f"gradient of {n}", shape, dtype, f"{kind} backward")
            for n, shape in zip(("q", "k", "v"), shapes, strict=True)
        ]
        held = scratch(t, *grads)
        del held
        return grads

    return t.op(
        f"{kind} attention",
        (q, k, v),
        (b, a, s, h.value_size),
        dtype,
        saves=(lse, v, q, k),  # they go from the end on: the output, k, q, v, the sums
        saves_output=True,
        backward=backward,
        alias=made,
    )


def _flash(w: Context, h: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention 2: an fp32 dq accumulator and row sums; with grouped heads also dk and dv for every
    query head (mha_bwd).
    """

    def scratch(t: Tape, dq: Tensor, dk: Tensor, dv: Tensor) -> list[Tensor]:
        b, a, s, d = dq.shape
        rows = round_up(s, 128)
        held = [
            t.alloc("softmax_d", (b, a, rows), "float32", "row sums of the gradient"),
            t.alloc("dq accumulator", (b, rows, a, round_up(d, 32)), "float32", "dq is summed in fp32"),
        ]
        if a != dk.shape[1]:
            whole = (b, dk.shape[2], a, d)
            held += [
                t.alloc(f"expanded d{n}", whole, dq.dtype, "one per query head before the sum over groups")
                for n in ("k", "v")
            ]
        return held

    return _fused(w, h, q, k, v, q.shape[2], "flash", scratch)


def _efficient(w: Context, h: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Memory-efficient attention: statistics padded to 32 rows; its backward keeps an fp32 dq for 16-bit
    inputs and a delta per row; with grouped heads (torch 2.14) dk and dv of every query head too.
    """
    t = w.t
    masks = [] if h.mask is None else _aligned(w, h.mask, q.dtype)

    def scratch(t: Tape, dq: Tensor, dk: Tensor, dv: Tensor) -> list[Tensor]:
        b, a, s, d = dq.shape
        held = [t.alloc("delta", (b, a, s), "float32", "row sums of the gradient")]
        if dq.dtype != "float32":
            held.append(
                t.alloc(
                    "dq accumulator",
                    (b, a, round_up(s, 64), round_up(d, 64)),
                    "float32",
                    "dq is summed in fp32",
                )
            )
        return held + _of_each_head(t, dq, dk, dv)

    out = _fused(w, h, q, k, v, round_up(q.shape[2], 32), "efficient", scratch)
    for mask in masks:
        if out.node is not None:
            t.save(out.node, mask)
    return out


def _cudnn(w: Context, h: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """cuDNN's attention: one workspace in backward, of fp32 dq and row sums; with grouped heads dk and dv of
    every query head too, and on all but Hopper and datacenter Blackwell dq once more (cuDNN's own answer:
    planner/trace/device/kernels_attention.py).
    """
    t = w.t
    bias = None if h.mask is None else _additive(w, h.mask, q.dtype)

    def scratch(t: Tape, dq: Tensor, dk: Tensor, dv: Tensor) -> list[Tensor]:
        b, a, s, d = dq.shape
        parts = [t.size((b, a, s, d + 1), "float32")]  # dq in fp32 and row sums
        if a != dk.shape[1]:  # dk and dv of every query head
            parts += [t.size((b, a, s, x.shape[3]), dq.dtype) for x in (dk, dv)]
        if w.device.capability[0] not in (9, 10):  # its engine sums dq again
            parts.append(t.size((b, a, round_up(s, 8), d), "float32"))
        why = "one for dq in fp32, row sums and what it keeps of each query head"
        return [t.alloc("cuDNN's workspace", (total(parts),), "uint8", why)]

    out = _fused(w, h, q, k, v, q.shape[2], "cudnn", scratch)
    if bias is not None and out.node is not None:
        t.save(out.node, bias)
    return out


def _of_each_head(t: Tape, dq: Tensor, dk: Tensor, dv: Tensor) -> list[Tensor]:
    """Grouped heads: dk and dv of every query head, before their sum over groups; none where heads are
    equal.
    """
    b, a, s, _ = dq.shape
    if a == dk.shape[1]:
        return []
    why = "one per query head before the sum over groups"
    return [
        t.alloc(f"expanded d{n}", (b, a, s, x.shape[3]), dq.dtype, why) for n, x in (("k", dk), ("v", dv))
    ]


def _additive(w: Context, mask: Tensor, dtype: str) -> Tensor:
    """convert_boolean_attn_mask: a mask of the query's dtype, made in every call and saved by it; a float
    mask is taken as it is.
    """
    if mask.dtype != "bool":
        return mask
    return w.t.alloc("additive mask", mask.shape, dtype, "the boolean mask in the query's dtype")


def _aligned(w: Context, mask: Tensor, dtype: str) -> list[Tensor]:
    """pad_bias: rows of the efficient kernel begin at multiples of 8; where S is none, the mask is made again
    with longer rows.
    """
    *front, columns = mask.shape
    padded, why = (*front, round_up(columns, 8)), "rows padded to a multiple of 8"
    odd = exceeds(round_up(columns, 8) - columns, 0)
    if mask.dtype == "bool":
        short = w.t.alloc("additive mask", (*mask.shape, odd), dtype, "before its rows are padded")
        made = w.t.alloc("additive mask", padded, dtype, why)
        del short
        return [made]
    # one mask of all heads serves every layer unless it has to be padded
    return [mask, w.t.alloc("padded ALiBi mask", (*padded, odd), mask.dtype, why)]


def _math(w: Context, h: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The composite: 16-bit inputs in fp32, q and k scaled, scores in full, the causal mask made as S x S,
    softmax, product, cast back.
    """
    t, a = w.t, h.spec.heads
    dtype = q.dtype
    b, _, s, _ = q.shape
    square = (b, a, s, k.shape[2])
    bias = None if h.mask is None else _additive(w, h.mask, dtype)
    unscaled, keys, values = (cast(t, x, "float32") for x in (q, k, v))
    queries = unary(t, "scale", unscaled, "scaled q")
    if bias is None:
        ones = t.alloc("ones", (s, s), "bool", "before the upper triangle is taken off")
        mask = t.alloc("causal mask", (s, s), "bool", "is_causal on the math path")
        del ones
        bias = _additive(w, mask, "float32")
        del mask
    shared = k.shape[1] != a
    if shared and h.spec.kv != "broadcast":
        keys, values = _interleave(w, h, keys), _interleave(w, h, values)
    wide = unary(t, "scale", keys, "scaled k")
    if shared and h.spec.kv == "broadcast":
        wide, values = repeat(w, h, wide), repeat(w, h, values)
    repeated = h.mask is not None and h.spec.kv_heads not in (
        1,
        a,
    )  # as for a backend without grouped heads: a copy of all heads
    own = (
        (shared and h.spec.kv != "broadcast") or repeated or (h.repeated and h.spec.kv_heads == a)
    )  # a head's rows lie together
    scores = bmm(t, fold(w, queries, False), fold(w, wide, own), square, "scores")
    del wide
    scores = _safe_softmax(t, scores)
    scores = dropout(t, scores, h.dropout)
    extra = cast(t, scores.detach(), dtype)  # the second result, made first and dropped by the caller
    out = bmm(t, scores, fold(w, values, own), (b, a, s, h.value_size), "attention output in fp32")
    out = cast(t, out, dtype)
    del extra, scores, bias, unscaled
    return out


def _interleave(w: Context, h: Heads, x: Tensor) -> Tensor:
    """repeat_interleave, which enable_gqa means on the math path: a copy for each query head."""
    b, kv, s, d = x.shape
    return w.t.op(
        "repeat_interleave",
        (x,),
        (b, h.spec.heads, s, d),
        x.dtype,
        name="repeated key or value",
        why="one copy for each query head",
        backward=lambda t, n, g: [
            t.alloc("gradient of repeated heads", (b, kv, s, d), g.dtype, "summed over the repeats")
        ],
    )


def _safe_softmax(t: Tape, scores: Tensor) -> Tensor:
    """_safe_softmax: a softmax, whose rows in which everything is masked are then set to zero in place
    (attention.cpp).
    """
    made = t.op(
        "softmax",
        (scores,),
        scores.shape,
        scores.dtype,
        saves_output=True,
        name="attention probabilities",
        backward=softmax_backward,
    )
    masked = t.alloc("masked elements", scores.shape, "bool", "which elements are masked")
    del masked
    return made


BACKENDS: dict[str, Callable[[Context, Heads, Tensor, Tensor, Tensor], Tensor]] = {
    "flash": _flash,
    "efficient": _efficient,
    "cudnn": _cudnn,
    "math": _math,
}
