"""flash-linear-attention's delta rules by chunks: what fla-core 0.6.0 makes, saves and frees, allocation by
allocation (ops/gated_delta_rule/chunk.py, chunk_fwd.py, wy_fast.py; ops/kda/chunk.py, chunk_fwd.py,
chunk_bwd.py, chunk_intra.py, wy_fast.py; ops/gla/chunk.py; ops/common/chunk_delta_h.py, chunk_o.py;
ops/utils/cumsum.py; modules/norm/l2norm.py).

A kernel's launch allocates nothing, so nothing is computed here. Local variables stand in the library's
order, since that is the order in which Python frees them. B batch, T tokens, H key heads, G value heads, K
and V their sizes, C chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

CHUNK = 64
"""Tokens of a chunk, where transformers 5.24 names none."""
_PART = 16
"""Tokens of a chunk's diagonal blocks, which Kimi's rule keeps in fp32 (chunk_intra.py BC)."""
_TILE = 32
"""Channels of a key that a block of Kimi's backward takes (chunk_intra.py BK)."""
_Method = TypeVar("_Method", bound=Callable[..., Any])
_forward: Callable[[_Method], _Method] = torch.amp.custom_fwd(device_type="cuda")
_backward: Callable[[_Method], _Method] = torch.amp.custom_bwd(device_type="cuda")
"""The backward runs with the forward's autocast, which sums in fp32."""


def _norm(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, T, H, K) over its length, and one fp32 number per head and token (l2norm_fwd)."""
    flat = x.view(-1, x.shape[-1])
    y = torch.empty_like(flat)
    scale = torch.empty(flat.shape[0], dtype=torch.float32, device=x.device)
    return y.view(x.shape), scale.view(x.shape[:-1])


def _of_norm(y: Tensor) -> Tensor:
    return torch.empty_like(y.view(-1, y.shape[-1])).view(y.shape)


def _summed(g: Tensor) -> Tensor:
    """The decay's running sum in each chunk, fp32 (chunk_local_cumsum)."""
    return torch.empty_like(g, dtype=torch.float32)


def _products(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """w (B, T, G, K) and u, like v (recompute_w_u_fwd)."""
    return k.new_empty(*v.shape[:3], k.shape[-1]), torch.empty_like(v)


def _states(k: Tensor, u: Tensor, final: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """The state before each chunk (B, C, G, K, V), what each token adds, like u, and the last state in fp32
    (chunk_gated_delta_rule_fwd_h).
    """
    (rows, tokens, heads, wide), deep = u.shape, k.shape[-1]
    each = k.new_empty(rows, -(-tokens // CHUNK), heads, deep, wide)
    last = k.new_zeros(rows, heads, deep, wide, dtype=torch.float32) if final else None
    return each, torch.empty_like(u), last


def _of_states(
    q: Tensor, do: Tensor, dv: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gradients of the states (B, C, G, K, V), of the first one, and of v
    (chunk_gated_delta_rule_bwd_dhu).
    """
    rows, tokens, heads, wide = do.shape
    each = q.new_empty(rows, -(-tokens // CHUNK), heads, q.shape[-1], wide)
    first = None if state is None else torch.empty_like(state, dtype=torch.float32)
    return each, first, torch.empty_like(dv)


def _fewer(x: Tensor, heads: int) -> Tensor:
    """A gradient (B, T, G, K) summed over the value heads that share one of H key heads."""
    rows, tokens, wide, deep = x.shape
    return x.view(rows, tokens, heads, wide // heads, deep).sum(3) if wide != heads else x


class GatedDeltaRule(torch.autograd.Function):
    """q, k (B, T, H, K), v (B, T, G, V), g and beta (B, T, G) -> (B, T, G, V) and the last state: saves q and
    k normalized, v, the decay's sums, beta and a chunk's inverse (B, T, G, 64); states are made again in the
    backward.
    """

    @staticmethod
    @_forward
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        state: Tensor | None,
        final: bool,
        normal: bool,
        tile: int,
    ) -> tuple[Tensor, Tensor | None]:
        """The output in the dtype of v; `tile`: channels of a key that a block of the backward takes."""
        given = [x.contiguous() for x in (q, k, v, g, beta)]
        ctx.normal, ctx.tile = normal, tile
        return _gated(ctx, given, state, final)

    @staticmethod
    @_backward
    def backward(ctx: Any, do: Tensor, dlast: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        """The gradients of q, k, v, g, beta and the first state."""
        given = [do.contiguous()]
        q, q_scale, k, k_scale, v, g, beta, inverse, state = ctx.saved_tensors
        dq, dk, dv, db, dg, first = _gated_gradients(q, k, v, g, beta, inverse, state, given[0], ctx.tile)
        if ctx.normal:
            dq = _of_norm(q)
            dk = _of_norm(k)
        return dq.to(q), dk.to(k), dv.to(v), dg.to(g), db.to(beta), first, None, None, None


def _gated(ctx: Any, given: list[Tensor], state: Tensor | None, final: bool) -> tuple[Tensor, Tensor | None]:
    q, k, v, g, beta = given
    q_scale = k_scale = None
    if ctx.normal:
        q, q_scale = _norm(q)
        k, k_scale = _norm(k)
    g, o, inverse, last = _gated_chunks(k, v, g, beta, final)
    ctx.save_for_backward(q, q_scale, k, k_scale, v, g, beta, inverse, state)
    return o.to(q.dtype), last


def _gated_chunks(
    k: Tensor, v: Tensor, g: Tensor, beta: Tensor, final: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    g = _summed(g)
    inverse = torch.zeros(*v.shape[:3], CHUNK, dtype=k.dtype, device=k.device)
    w, u = _products(k, v)
    h, new, last = _states(k, u, final)
    return g, torch.empty_like(new), inverse, last


def _gated_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    inverse: Tensor,
    state: Tensor | None,
    do: Tensor,
    tile: int,
) -> tuple[Any, ...]:
    w, u = _products(k, v)
    h, new, _ = _states(k, u, False)
    dv = torch.empty_like(do)
    dh, first, dv = _of_states(q, do, dv, state)
    dq, dk, dw, dg = _of_outputs(q, k, g, w, do, tile)
    more, dv, db, dg_more = _of_products(k, v, g, beta)
    dk.add_(more)
    dg.add_(dg_more)
    dg = _summed(dg)
    return dq, dk, dv, db, dg, first


def _of_outputs(
    q: Tensor, k: Tensor, g: Tensor, w: Tensor, do: Tensor, tile: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, w and g, the last summed over blocks of a key's channels (chunk_bwd_dqkwg)."""
    heads, deep = q.shape[2:]
    dq = q.new_empty(*do.shape[:3], deep)
    dk = k.new_empty(*do.shape[:3], deep)
    dg = torch.empty(-(-deep // tile), *g.shape, dtype=torch.float32, device=g.device)
    dw = torch.empty_like(w)
    dq = _fewer(dq, heads)
    dk = _fewer(dk, heads)
    dg = dg.sum(0)
    return dq, dk, dw, dg


def _of_products(k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of k, v, beta and g (prepare_wy_repr_bwd)."""
    dk = k.new_empty(*v.shape[:3], k.shape[-1])
    dv = torch.empty_like(v)
    dg = torch.empty_like(g)
    db = torch.empty_like(beta)
    dk = _fewer(dk, k.shape[2])
    return dk, dv, db, dg


class KimiDeltaRule(torch.autograd.Function):
    """q, k (B, T, H, K), v (B, T, G, V), g (B, T, G, K), beta (B, T, G) -> (B, T, G, V) and the last state:
    saves q and k normalized, v, g and its sums in fp32, beta and two products of a chunk (B, T, G, 64).
    """

    @staticmethod
    @_forward
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        state: Tensor | None,
        final: bool,
        normal: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The output in the dtype of q."""
        given = [x.contiguous() for x in (q, k, v, g, beta)]
        ctx.normal = normal
        return _kimi(ctx, given, state, final)

    @staticmethod
    @_backward
    def backward(ctx: Any, do: Tensor, dlast: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        """The gradients of q, k, v, g, beta and the first state."""
        given = [do.contiguous()]
        q, q_scale, k, k_scale, v, sums, g, beta, inside, inverse, state = ctx.saved_tensors
        dq, dk, dv, db, dg, first = _kimi_gradients(q, k, v, sums, beta, inverse, state, given[0])
        if ctx.normal:
            dq = _of_norm(q)
            dk = _of_norm(k)
        return dq.to(q), dk.to(k), dv.to(v), dg.to(g), db.to(beta), first, None, None


def _kimi(ctx: Any, given: list[Tensor], state: Tensor | None, final: bool) -> tuple[Tensor, Tensor | None]:
    q, k, v, g, beta = given
    q_scale = k_scale = None
    if ctx.normal:
        q, q_scale = _norm(q)
        k, k_scale = _norm(k)
    o, last, sums, inside, inverse = _kimi_chunks(k, v, g, final)
    ctx.save_for_backward(q, q_scale, k, k_scale, v, sums, g, beta, inside, inverse, state)
    return o.type_as(q), last


def _kimi_chunks(
    k: Tensor, v: Tensor, g: Tensor, final: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    g = _summed(g)
    w, u, kg, inside, inverse = _kimi_inside(k, v)
    h, new, last = _states(kg, u, final)
    o = torch.zeros_like(new)
    del w, u, kg, new, h
    return o, last, g, inside, inverse


def _kimi_inside(k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """A chunk's products, one of them with its diagonal blocks in fp32 (chunk_kda_fwd_intra)."""
    inside = torch.empty(*v.shape[:3], CHUNK, dtype=k.dtype, device=k.device)
    inverse = torch.zeros(*v.shape[:3], CHUNK, dtype=k.dtype, device=k.device)
    _diagonal = torch.empty(*v.shape[:3], _PART, dtype=torch.float32, device=k.device)
    w, u = _products(k, v)
    kg = torch.empty_like(w)
    return w, u, kg, inside, inverse


def _kimi_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    inverse: Tensor,
    state: Tensor | None,
    do: Tensor,
) -> tuple[Any, ...]:
    heads = q.shape[2]
    w, u = _products(k, v)
    qg, kg = torch.empty_like(w), torch.empty_like(w)
    h, new, _ = _states(kg, u, False)
    _dinside = new.new_empty(*inverse.shape, dtype=torch.float32)
    dv = torch.empty_like(do)
    dh, first, dv = _of_states(qg, do, dv, state)
    dq, dk, dv, db, dg, dinverse = _of_kimi_products(k, v, g, beta, inverse)
    dq, dk, db, dg = _of_kimi_inside(dq, dk, db, dg, beta)
    dq = _fewer(dq, heads)
    dk = _fewer(dk, heads)
    dg = _summed(dg)
    return dq, dk, dv, db, dg, first


def _of_kimi_products(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, inverse: Tensor) -> tuple[Tensor, ...]:
    """All in fp32 but that of v (chunk_kda_bwd_wy_dqkg_fused)."""
    dq = g.new_empty(*v.shape[:3], k.shape[-1], dtype=torch.float32)
    dk = g.new_empty(*v.shape[:3], k.shape[-1], dtype=torch.float32)
    dv = torch.empty_like(v)
    dg = torch.empty_like(g, dtype=torch.float32)
    db = torch.empty_like(beta, dtype=torch.float32)
    dinverse = torch.empty_like(inverse, dtype=torch.float32)
    return dq, dk, dv, db, dg, dinverse


def _of_kimi_inside(
    dq: Tensor, dk: Tensor, db: Tensor, dg: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same with a chunk's own products, that of beta summed over blocks of a key's channels
    (chunk_kda_bwd_intra).
    """
    blocks = -(-dq.shape[-1] // _TILE)
    dq2 = torch.empty_like(dq)
    dk2 = torch.empty_like(dk)
    db2 = beta.new_empty(blocks, *beta.shape, dtype=torch.float32)
    dg2 = torch.empty_like(dg, dtype=torch.float32)
    db = db2.sum(0).add_(db)
    return dq2, dk2, db, dg2
