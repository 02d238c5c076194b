"""A decoder layer on the tape: the order of calls and the local variables of transformers' decoder layers
(5.23).

B batch, S sequence, H hidden, I intermediate, A heads, K key-value heads, D head size. A module's arguments
live until its call returns, which is why functions here take `given` and rebind another name.
"""

from __future__ import annotations

from dataclasses import replace

from memplan.planner.formula.forward.attend import attend
from memplan.planner.formula.forward.cache import cached
from memplan.planner.formula.forward.call_order import (
    adds_inside,
    drops_inside,
    names_norm,
    norms_by_head,
    projects_first,
    residual_first,
    seen_as,
)
from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.eager import eager
from memplan.planner.formula.forward.experts import mixture
from memplan.planner.formula.forward.heads import Heads, cut_falcon, native_gqa
from memplan.planner.formula.forward.linears import bottleneck, linear
from memplan.planner.formula.forward.mlp import dense_mlp
from memplan.planner.formula.forward.norms import norm
from memplan.planner.formula.forward.rotary import joined, rotate
from memplan.planner.formula.symbolic.expr import product
from memplan.planner.formula.tape.ops import Grads, add, add_in_place, concatenate, dropout, split, unary
from memplan.planner.formula.tape.tape import Node, Tape, Tensor
from memplan.planner.inputs.spec import Attention, Layer, Mlp, Norm

# ---- attention ---------------------------------------------------------------------------------------------


def _heads(w: Context, x: Tensor, heads: int, size: int, copies: bool) -> Tensor:
    """(B, S, heads x D) as (B, heads, S, D). Where the gradient comes back head by head, it is copied into
    token order (`copies`).
    """
    whole = x.shape

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [
            t.alloc("gradient in token order", whole, grad.dtype, "transposed back")
            if copies
            else Tensor(grad.buffer, whole, grad.dtype)
        ]

    return w.t.op("heads", (x,), (w.batch, heads, whole[1], size), x.dtype, alias=x, backward=backward)


def attention(
    w: Context,
    layer: Layer,
    given: Tensor,
    prefix: str,
    tables: tuple[Tensor, Tensor] | None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The attention module's output and what it returns beside it (eager's probabilities, which live as long
    as the layer's call). `residual`: what the module itself adds.
    """
    spec, t = layer.attention, w.t
    qkv = _mla if spec.kind == "mla" else _gqa
    with w.t.inside(f"{prefix}attention "):
        q, k, v, kept_alive = qkv(w, spec, given, prefix, tables)
        if w.join is not None and w.layer is not None:
            k, v = w.join(w.layer, [k, v])
        if w.cache is not None and spec.kind != "mla":
            k, v = cached(w, k, v, spec.window)
        sinks = w.weight(f"{prefix}self_attn.sinks") if spec.sinks else None
        heads = Heads(
            replace(spec, kv_heads=spec.heads) if spec.kv == "expanded" else spec,
            spec.head_dim,
            spec.value_dim or spec.head_dim,
            w.masks[spec.window],
            w.parameter_table.spec.dropouts.attention if t.training else 0.0,
            sinks,
            head_major=(joined(spec) or norms_by_head(w)) and "rope" not in w.kernels,
            hidden_dtype=given.dtype,
            repeated=w.past > 0 or w.cache is not None,
        )
        out, probabilities, local = attend(w, heads, q, k, v)
    if w.fuses("lora_o", spec.linears[-1:]):
        from memplan.planner.formula.forward.fused_lora import projections

        (hidden,) = projections(w, spec.linears[-1:], out, prefix)
    else:
        hidden = linear(w, spec.linears[-1], out, prefix)
    if adds_inside(w):
        local.insert(0, out)
    del out
    if drops_inside(w):
        hidden = dropout(t, hidden, w.parameter_table.spec.dropouts.attention_output)
    if residual is not None:
        hidden = add(t, residual, hidden, "attention residual")
    del q, k, v, kept_alive, local
    return bottleneck(w, "attention", hidden, prefix), probabilities


def _named(norms: tuple[Norm, ...], position: str) -> Norm | None:
    return next((n for n in norms if n.position == position), None)


Projected = tuple[
    Tensor, Tensor, Tensor, list[Tensor]
]  # q, k, v, and what else stays kept_alive until the module returns


def _gqa(
    w: Context, spec: Attention, given: Tensor, prefix: str, tables: tuple[Tensor, Tensor] | None
) -> Projected:
    """q, k, v from three projections or one fused one, with norms on q and k and rotary embedding where the
    model has them.
    """
    t, a, kv, d = w.t, spec.heads, spec.kv_heads, spec.head_dim
    by_head = eager(w, spec) or w.setup.attention == "sdpa-math"
    rotates = bool(spec.rotary_dim)
    counts, falcon = (a, kv, kv), spec.eager == "falcon"
    kept_alive: list[Tensor] = []
    if len(spec.linears) == 2:
        fused = linear(w, spec.linears[0], given, prefix)
        if falcon:
            pieces, counts = cut_falcon(w, spec, fused), (a, kv, kv) if spec.kv == "broadcast" else (a, a, a)
            kept_alive.append(fused)
        else:
            pieces = split(t, fused, [(*given.shape[:-1], n * d) for n in counts])
        del fused
    else:
        first = projects_first(w)
        if w.fuses("lora_qkv", spec.linears[:3]):
            from memplan.planner.formula.forward.fused_lora import projections

            pieces = projections(w, spec.linears[:3], given, prefix)
        else:
            pieces = [linear(w, each, given, prefix) for each in spec.linears[:3]] if first else []
    kernel, by_norm = "rope" in w.kernels, norms_by_head(w)  # Liger's, and in what order its norm reads
    made = []
    for i, (position, heads) in enumerate(zip(("q", "k", "v"), counts, strict=True)):
        if pieces:
            piece = pieces[i]
            pieces[i] = given
        else:
            piece = linear(w, spec.linears[i], given, prefix)
        if position == "q" and spec.scaled_query:
            piece = unary(t, "scale", piece, "scaled q")
        own = [n for n in spec.norms if n.position == position]
        if own and by_norm:
            made.append(norm(w, own[0], _heads(w, piece, heads, d, copies=True), prefix, by_head=True))
            del piece
            continue
        if own and (
            own[0].heads or len(own) > 1
        ):  # one norm of every head, or one for each (StableLM), whose sizes add up to the same
            piece = norm(w, own[0], piece.view(*piece.shape[:-1], heads, d), prefix).view(*piece.shape)
        elif own:
            piece = norm(w, own[0], piece, prefix)
        turned = rotates and position != "v"
        copies = not kernel if turned else by_head  # the kernel itself brings gradients into token order
        made.append(_heads(w, piece, heads, d, copies=not falcon and copies))
        del piece
    del pieces
    q, k, v = made
    del made
    if kernel and tables is not None and rotates:
        from memplan.planner.formula.tape.fused_kernels import rotated

        split_or_normed = len(spec.linears) == 2 or by_norm
        expanded = spec.kv_heads not in (1, a) and not native_gqa(w, spec, w.masks[spec.window])
        q = rotated(t, q, tables, split_or_normed, by_head)
        k = rotated(t, k, tables, split_or_normed, by_head or expanded)
    elif tables is not None and rotates:
        q, k = rotate(w, (q, k), spec, tables, kept_alive if spec.rotary_kept_alive else None)
    return q, k, v, kept_alive


def _mla(
    w: Context, spec: Attention, given: Tensor, prefix: str, tables: tuple[Tensor, Tensor] | None
) -> Projected:
    """Multi-head latent attention (DeepSeek-V2/V3): q and kv through low-rank projections, the rotary part
    apart, k and v made in full.
    """
    t, a, rope = w.t, spec.heads, spec.rotary_dim
    value = spec.value_dim or spec.head_dim
    plain = spec.head_dim - rope
    front = given.shape[:-1]
    q_a_norm, kv_norm = _named(spec.norms, "q_a"), _named(spec.norms, "kv_a")
    projections = list(spec.linears[:-1])
    if q_a_norm is not None:
        q_a, q_b, kv_a, kv_b = projections
        queries = linear(w, q_b, norm(w, q_a_norm, linear(w, q_a, given, prefix), prefix), prefix)
    else:
        q_proj, kv_a, kv_b = projections
        queries = linear(w, q_proj, given, prefix)
    q = _heads(w, queries, a, spec.head_dim, copies=True)
    del queries
    q_pass, q_rot = split(t, q, [(*q.shape[:-1], plain), (*q.shape[:-1], rope)])
    compressed = linear(w, kv_a, given, prefix)
    rank = kv_b.in_features
    latent, k_rot = split(t, compressed, [(*front, rank), (*front, rope)])
    normed = norm(w, kv_norm, latent, prefix) if kv_norm is not None else latent
    k_rot = k_rot.view(w.batch, 1, front[1], rope)
    if tables is not None:
        q_rot, k_rot = rotate(w, (q_rot, k_rot), spec, tables)
    if w.cache is not None:  # what is cached is the latent, before keys and values are made of it
        normed, k_rot = cached(w, normed, k_rot)
    q = concatenate(t, (q_pass, q_rot), q.shape, "query")
    expanded = _heads(w, linear(w, kv_b, normed, prefix), a, plain + value, copies=True)
    del normed
    k_pass, v = split(t, expanded, [(*q.shape[:-1], plain), (*q.shape[:-1], value)])
    spread = t.op(
        "expand",
        (k_rot,),
        (*q.shape[:-1], rope),
        k_rot.dtype,
        alias=k_rot,
        backward=lambda t, n, g: [Tensor(g.buffer, g.shape, g.dtype)],
    )
    k = concatenate(t, (k_pass, spread), q.shape, "key")
    return q, k, v, []


RETURNED = ("bloom", "falcon")  # families whose layers return the attention probabilities (transformers 5.24)


# ---- the layer ---------------------------------------------------------------------------------------------


def decoder_layer(
    w: Context, layer: Layer, given: Tensor, prefix: str, tables: tuple[Tensor, Tensor] | None
) -> list[Tensor]:
    """One layer's output (B, S, H), and the attention probabilities where the family's layers return them
    beside it.
    """
    out, probabilities = (_parallel if layer.parallel else _sequential)(w, layer, given, prefix, tables)
    beside = probabilities is not None and layer.attention.eager in RETURNED
    return [out, probabilities] if beside and probabilities is not None else [out]


def _normed(w: Context, layer: Layer, position: str, x: Tensor, prefix: str) -> Tensor:
    spec = _named(layer.norms, position)
    return x if spec is None else norm(w, spec, x, prefix)


def mlp(w: Context, layer: Layer, given: list[Tensor], prefix: str, residual: Tensor | None = None) -> Tensor:
    """The layer's MLP, dense or a mixture of experts, and the dropout inside it. `given`: its input alone,
    which an inline one lets go. `residual`: what the module itself adds.
    """
    kept_alive: list[Tensor] = []
    if isinstance(layer.mlp, Mlp):
        kept = None if residual is None else kept_alive
        out = dense_mlp(w, layer.mlp, given.pop() if layer.mlp.inline else given[0], prefix, kept)
    else:
        out = mixture(w, layer.mlp, given[0], prefix)
    if drops_inside(w):
        out = dropout(w.t, out, w.parameter_table.spec.dropouts.mlp_output)
    if residual is not None:
        out = add(w.t, residual, out, "layer output")
    kept_alive.clear()
    return out if isinstance(layer.mlp, Mlp) and layer.mlp.inline else bottleneck(w, "mlp", out, prefix)


def _sequential(
    w: Context, layer: Layer, given: Tensor, prefix: str, tables: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor | None]:
    """Attention, residual, MLP, residual; norms before (Llama), around (Gemma 2) or after each (OLMo 2), or
    on the sums (OPT-350m).
    """
    t = w.t
    residual = given
    dropouts, drops = w.parameter_table.spec.dropouts, not drops_inside(w)
    adds = not adds_inside(w)
    normed = _normed(w, layer, "input", given, prefix)
    hidden, probabilities = attention(w, layer, normed, prefix, tables, None if adds else residual)
    kept_alive = [hidden] if layer.attention_kept_alive else []
    kept_alive += [normed] if layer.named_norm else []
    renamed = [] if adds else [normed]  # the next norm's output takes its name
    del normed
    if drops:
        hidden = dropout(t, hidden, dropouts.attention_output)
    if not layer.post_norm:
        hidden = _normed(w, layer, "post_attention", hidden, prefix)
    if layer.scaled_branches:
        hidden = unary(t, "scale", hidden, "scaled branch")
    if adds:
        hidden = add(t, residual, hidden, "attention residual")
    if layer.post_norm:
        hidden = _normed(w, layer, "post_attention", hidden, prefix)
    shape, by_token = hidden.shape, isinstance(layer.mlp, Mlp) and layer.mlp.inline
    if by_token:
        hidden = seen_as(t, hidden, (product(shape[:-1]), shape[-1]))
    residual = hidden
    passed = [_normed(w, layer, "pre_mlp", hidden, prefix)]
    renamed.clear()
    del hidden
    hidden = mlp(w, layer, passed, prefix, None if adds else residual)
    passed.clear()
    if drops:
        hidden = dropout(t, hidden, dropouts.mlp_output)
    if not layer.post_norm:
        hidden = _normed(w, layer, "post_mlp", hidden, prefix)
    if layer.scaled_branches:
        hidden = unary(t, "scale", hidden, "scaled branch")
    if adds:
        hidden = add(t, residual, hidden, "layer output")
    if by_token:
        hidden = seen_as(t, hidden, shape)
    if layer.post_norm:
        hidden = _normed(w, layer, "post_mlp", hidden, prefix)
    del kept_alive
    return hidden, probabilities


def _parallel(
    w: Context, layer: Layer, given: Tensor, prefix: str, tables: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor | None]:
    """Attention and MLP of the same residual stream, both added (GPT-NeoX, Falcon, Cohere)."""
    t = w.t
    normed = _normed(w, layer, "input", given, prefix)
    dropouts, drops = w.parameter_table.spec.dropouts, not drops_inside(w)
    attended, probabilities = attention(w, layer, normed, prefix, tables)
    if drops:
        attended = dropout(t, attended, dropouts.attention_output)
    second = _named(layer.norms, "pre_mlp")
    passed = [normed if second is None else norm(w, second, given, prefix)]
    if not layer.attention_kept_alive:  # GPT-NeoX names neither norm's output
        del normed
    fed = mlp(w, layer, passed, prefix)  # named by every family's code, so that the sum stands beside it
    first = residual_first(w)
    renamed = [*passed] if names_norm(w) else []
    passed.clear()
    if drops:
        fed = dropout(t, fed, dropouts.mlp_output)
    if layer.branches_in_place:
        both = add_in_place(t, fed, attended)
    elif first:
        both = add(t, given, attended, "residual and attention")
    else:
        both = add(t, fed, attended, "branches")
    out = add(t, both, fed if first else given, "layer output")
    del both  # it has no name, the others have
    renamed.clear()
    return out, probabilities
