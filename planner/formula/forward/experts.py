"""Mixtures of experts on the tape: router, grouped products, the weighted sum back (transformers 5.23
integrations/moe.py).

N = B x S tokens, E experts, k experts a token, I intermediate size of one expert. Every expert's matrices are
one 3-D parameter; a grouped product (grouped_mm, compute capability 8.0 and later) reads N x k rows sorted by
expert, so sizes do not depend on the routing.
"""

from __future__ import annotations

from collections.abc import Callable

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.grouped_experts import _grouped
from memplan.planner.formula.forward.linears import linear, merged
from memplan.planner.formula.forward.mlp import dense_mlp
from memplan.planner.formula.symbolic.expr import product
from memplan.planner.formula.tape.layers import matmul
from memplan.planner.formula.tape.ops import (
    Grads,
    add,
    cast,
    concatenate,
    divide,
    mul,
    unary,
)
from memplan.planner.formula.tape.tape import Node, Tape, Tensor
from memplan.planner.inputs.spec import Linear, Moe
from memplan.planner.tables.errors import UsageError


def mixture(w: Context, moe: Moe, given: Tensor, prefix: str) -> Tensor:
    """The experts' weighted output, with the shared experts' added."""
    t = w.t
    if w.setup.transformers != "5":
        raise UsageError(
            f"experts were linear modules in transformers {w.setup.transformers}, for which the formula has "
            "no rule: leave transformers out for the installed release's"
        )
    tokens = product(given.shape[:-1])
    hidden = given.view(tokens, given.shape[-1])
    gated: Tensor | None = None
    if moe.shared is not None and moe.shared_gate is not None:
        gated = dense_mlp(w, moe.shared, hidden, prefix)
    with t.inside(f"{prefix}router "):
        weights, indices = ROUTERS[w.parameter_table.spec.model_type](w, moe, hidden, prefix)
    with t.inside(f"{prefix}experts "):
        out = _grouped(w, moe, hidden, weights, indices, prefix)
    del weights, indices
    if gated is not None and moe.shared_gate is not None:
        gate = unary(t, "sigmoid", linear(w, moe.shared_gate, hidden, prefix), "shared gate")
        gated = mul(t, gated, gate, "gated shared output")
        out = add(t, out, gated, "with shared expert")
    elif moe.shared is not None:
        out = add(t, out.view(*given.shape), dense_mlp(w, moe.shared, given, prefix), "with shared experts")
    return out.view(*given.shape)


# ---- routers: (weights (N, k), indices (N, k)) -------------------------------------------------------------

Routed = tuple[Tensor, Tensor]


def _logits(w: Context, moe: Moe, hidden: Tensor, prefix: str, dtype: str | None = None) -> Tensor:
    """hidden @ router^T (+ bias), in fp32 where the family casts both first."""
    t = w.t
    weight = merged(w, moe.router[0][0], prefix)
    bias = w.weight(prefix + moe.router[1][0]) if len(moe.router) > 1 else None
    if dtype is not None:
        hidden, weight = cast(t, hidden, dtype), cast(t, weight, dtype)
    name = moe.router[0][0].rpartition(".")[0]
    layer = Linear(name, int(moe.router[0][1][1]), moe.experts)
    return matmul(
        t,
        w.autocast_low(hidden),
        w.autocast_low(weight),
        (hidden.shape[0], layer.out_features),
        None if bias is None else w.autocast_low(bias),
        "router logits",
    )


def softmax(t: Tape, x: Tensor, dtype: str | None = None) -> Tensor:
    """Probabilities of every row, in `dtype` where one is named; they are saved."""

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        both = [
            t.alloc("grad * softmax", grad.shape, grad.dtype),
            t.alloc("gradient of softmax's input", grad.shape, grad.dtype),
        ]
        return [both.pop()]

    wide = cast(t, x, dtype or x.dtype)
    return t.op(
        "softmax",
        (wide,),
        x.shape,
        wide.dtype,
        saves_output=True,
        name="router probabilities",
        backward=backward,
    )


def top(t: Tape, x: Tensor, k: int, name: str = "routing weights") -> Routed:
    """topk: saves the indices; its gradient is scattered into zeros of the whole shape."""
    rows, columns = x.shape
    indices = t.alloc("chosen experts", (rows, k), "int64", "one per token and slot")
    values = t.op(
        "topk",
        (x,),
        (rows, k),
        x.dtype,
        saves=(indices,),
        name=name,
        backward=lambda t, n, g: [
            t.alloc("gradient of topk's input", (rows, columns), g.dtype, "scattered into zeros")
        ],
    )
    return values, indices


def _normalized(t: Tape, values: Tensor) -> Tensor:
    """values /= their sum, in place."""
    rows, k = values.shape
    total = t.op(
        "sum",
        (values,),
        (rows, 1),
        values.dtype,
        name="sum of weights",
        backward=lambda t, n, g: [Tensor(g.buffer, g.shape, g.dtype)],
    )
    return divide(t, values, total, "normalized weights")


def _probabilities(
    normal: Callable[[Context], bool], narrow: bool
) -> Callable[[Context, Moe, Tensor, str], Routed]:
    """softmax in fp32, the k largest, normalized or not, cast back or not (Mixtral, Qwen, OLMoE)."""

    def router(w: Context, moe: Moe, hidden: Tensor, prefix: str) -> Routed:
        t = w.t
        logits = _logits(w, moe, hidden, prefix)
        if w.routed is not None:
            w.routed.append((logits, t.times))
        values, indices = top(t, softmax(t, logits, "float32"), moe.top_k)
        if normal(w):
            values = _normalized(t, values)
        return cast(t, values, logits.dtype) if narrow else values, indices

    return router


def _flag(key: str, default: bool) -> Callable[[Context], bool]:
    return lambda w: bool(w.parameter_table.spec.config.get(key, default))


def _sigmoid_groups(w: Context, moe: Moe, hidden: Tensor, prefix: str) -> Routed:
    """DeepSeek-V3: fp32 logits, sigmoid, a correction, the best groups, the k best of them; weights gathered
    from the scores.
    """
    t = w.t
    scores = unary(t, "sigmoid", _logits(w, moe, hidden, prefix, "float32"), "router scores")
    shape = scores.shape
    corrected = add(t, scores.detach(), Tensor(None, (moe.experts,), "float32"), "corrected scores")
    masked = t.alloc("masked scores", shape, "float32", "scores of the groups left out are dropped")
    indices = t.alloc("chosen experts", (shape[0], moe.top_k), "int64", "one per token and slot")
    del corrected, masked
    values = t.op(
        "gather",
        (scores,),
        (shape[0], moe.top_k),
        "float32",
        saves=(indices,),
        name="routing weights",
        backward=lambda t, n, g: [
            t.alloc("gradient of gather's input", shape, g.dtype, "scattered into zeros")
        ],
    )
    if _flag("norm_topk_prob", True)(w):
        values = _normalized(t, values)
    return unary(t, "scale", values, "scaled weights"), indices


def _softmax_groups(w: Context, moe: Moe, hidden: Tensor, prefix: str) -> Routed:
    """DeepSeek-V2: fp32 logits and softmax; group-limited where the config says so."""
    t = w.t
    scores = softmax(t, _logits(w, moe, hidden, prefix, "float32"))
    if w.parameter_table.spec.config.get("topk_method") == "group_limited_greedy":
        mask = t.alloc("group mask", scores.shape, "bool", "experts of the groups left out")
        scores = t.op(
            "masked_fill",
            (scores,),
            scores.shape,
            "float32",
            saves=(mask,),
            name="masked scores",
            backward=lambda t, n, g: [t.alloc("gradient of masked_fill's input", g.shape, g.dtype)],
        )
    values, indices = top(t, scores, moe.top_k)
    return unary(t, "scale", values, "scaled weights"), indices


def _top_softmax(wide: bool) -> Callable[[Context, Moe, Tensor, str], Routed]:
    """The k largest logits first, softmax of those (gpt-oss; Granite in fp32)."""

    def router(w: Context, moe: Moe, hidden: Tensor, prefix: str) -> Routed:
        t = w.t
        logits = _logits(w, moe, hidden, prefix)
        values, indices = top(t, cast(t, logits, "float32") if wide else logits, moe.top_k, "largest logits")
        return cast(t, softmax(t, values), hidden.dtype if wide else logits.dtype), indices

    return router


def _sparsemixer(w: Context, moe: Moe, hidden: Tensor, prefix: str) -> Routed:
    """Phi-3.5-MoE: two rounds of masked softmax, each with its own chosen expert."""
    t = w.t
    logits = _logits(w, moe, hidden, prefix)
    rows = logits.shape[0]
    chosen = []
    for _ in range(moe.top_k):
        mask = t.alloc("sparsity mask", logits.shape, "bool", "logits far below the maximum")
        masked = t.op(
            "masked_fill",
            (logits,),
            logits.shape,
            logits.dtype,
            saves=(mask,),
            name="masked logits",
            backward=lambda t, n, g: [t.alloc("gradient of masked_fill's input", g.shape, g.dtype)],
        )
        chosen.append(top(t, softmax(t, masked), 1)[0])
        del mask, masked
    values = concatenate(t, chosen, (rows, moe.top_k), "routing weights")
    return values, t.alloc("chosen experts", (rows, moe.top_k), "int64", "one per token and slot")


ROUTERS: dict[str, Callable[[Context, Moe, Tensor, str], Routed]] = {
    "mixtral": _probabilities(lambda w: True, narrow=False),
    "qwen2_moe": _probabilities(_flag("norm_topk_prob", False), narrow=True),
    "qwen3_moe": _probabilities(_flag("norm_topk_prob", False), narrow=True),
    "olmoe": _probabilities(_flag("norm_topk_prob", False), narrow=True),
    "deepseek_v3": _sigmoid_groups,
    "deepseek_v2": _softmax_groups,
    "gpt_oss": _top_softmax(wide=False),
    "granitemoe": _top_softmax(wide=True),
    "phimoe": _sparsemixer,
}


# ---- the experts -------------------------------------------------------------------------------------------
