"""Mixtures of experts on the tape: router, grouped products, the weighted sum back (transformers 5.23
integrations/moe.py).

N = B x S tokens, E experts, k experts a token, I intermediate size of one expert. Every expert's matrices are
one 3-D parameter; a grouped product (grouped_mm, compute capability 8.0 and later) reads N x k rows sorted by
expert, so sizes do not depend on the routing.
"""

from __future__ import annotations

from collections.abc import Callable

from memplan.planner.formula.forward.activation_functions import activation
from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.linears import linear, merged
from memplan.planner.formula.forward.mlp import dense_mlp
from memplan.planner.formula.symbolic.expr import Sized, product
from memplan.planner.formula.tape.ops import (
    Grads,
    add,
    add_in_place,
    cast,
    concatenate,
    divide,
    matmul,
    mul,
    split,
    unary,
)
from memplan.planner.formula.tape.tape import Node, Shape, Tape, Tensor
from memplan.planner.inputs.spec import Linear, Moe


def mixture(w: Context, moe: Moe, given: Tensor, prefix: str) -> Tensor:
    """The experts' weighted output, with the shared experts' added."""
    t = w.t
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


def _softmax(t: Tape, x: Tensor, dtype: str | None = None) -> Tensor:
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


def _top(t: Tape, x: Tensor, k: int, name: str = "routing weights") -> Routed:
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
        values, indices = _top(t, _softmax(t, logits, "float32"), moe.top_k)
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
    scores = _softmax(t, _logits(w, moe, hidden, prefix, "float32"))
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
    values, indices = _top(t, scores, moe.top_k)
    return unary(t, "scale", values, "scaled weights"), indices


def _top_softmax(wide: bool) -> Callable[[Context, Moe, Tensor, str], Routed]:
    """The k largest logits first, softmax of those (gpt-oss; Granite in fp32)."""

    def router(w: Context, moe: Moe, hidden: Tensor, prefix: str) -> Routed:
        t = w.t
        logits = _logits(w, moe, hidden, prefix)
        values, indices = _top(t, cast(t, logits, "float32") if wide else logits, moe.top_k, "largest logits")
        return cast(t, _softmax(t, values), hidden.dtype if wide else logits.dtype), indices

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
        chosen.append(_top(t, _softmax(t, masked), 1)[0])
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
    biased = "gate_up_proj_bias" in full
    wide = (rows, 2 * moe.intermediate if moe.gated else moe.intermediate)
    up = merged(
        w, full["gate_up_proj" if "gate_up_proj" in full else "up_proj"], prefix
    )  # folded weights live to the end of the call
    states = _grouped_mm(w, selected, up, wide, "up output")
    if biased:
        states = _add_bias(w, states, w.weight(prefix + full["gate_up_proj_bias"]), order)
    states = _gate(w, moe, states)
    down = merged(w, full["down_proj"], prefix)
    states = _grouped_mm(w, states, down, (rows, width), "down output")
    if biased:
        states = _add_bias(w, states, w.weight(prefix + full["down_proj_bias"]), order)
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
    rows want a gradient.
    """
    t = w.t
    x = cast(t, x, weight.dtype)
    x_shape, w_shape, w_name = x.shape, weight.shape, weight.name

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        grads: list[Tensor | None] = [None, None]
        if node.needs(0):
            grads[0] = t.alloc(
                "gradient of the experts' input", x_shape, grad.dtype, "grad @ weight, expert by expert"
            )
        if node.needs(1):
            grads[1] = t.alloc(f"{w_name} gradient", w_shape, grad.dtype, "of all experts, used or not")
        return grads

    saves = ([x] if weight.requires_grad else []) + ([weight] if x.requires_grad else [])
    return t.op("grouped_mm", (x, weight), shape, x.dtype, saves=saves, backward=backward, name=name)


def _add_bias(w: Context, states: Tensor, bias: Tensor, order: Tensor) -> Tensor:
    """out.add_(bias[expert of each row])."""
    return add_in_place(w.t, states, _index(w, bias, order, states.shape, "bias by row"))


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
