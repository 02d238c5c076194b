"""Mamba 2 by mamba-ssm's Triton kernels: what 2.3.2.post1 makes and saves, allocation by allocation
(ops/triton/ssd_combined.py, ssd_chunk_state.py, ssd_state_passing.py, ssd_bmm.py, ssd_chunk_scan.py,
layernorm_gated.py), without deterministic algorithms.

B batch, S tokens, H heads of P channels, G groups of heads, N states, C chunks of L tokens. A name that
nothing reads keeps its tensor until its function returns, as it does there.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memplan.planner.run.launches import Launches

_TILE = 32
"""Rows of the smallest block, for which sums over blocks have room whichever variant runs."""


class Scanned(NamedTuple):
    """What one scan makes: out and ungated (B, S, H, P), dt and sums (B, H, C, L), states (B, C, H, P, N) of
    which each chunk starts, final (B, H, P, N).
    """

    out: Tensor
    ungated: Tensor | None
    dt: Tensor
    sums: Tensor
    states: Tensor
    final: Tensor


def scan(
    launch: Launches,
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    chunk: int,
    d: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
) -> Scanned:
    """x (B, S, H, P), dt (B, S, H), a (H), b and c (B, S, G, N), gated by z, laid out as x
    (_mamba_chunk_scan_combined_fwd).
    """
    b, c = (each if each.stride(-1) == 1 else each.contiguous() for each in (b, c))
    x = x if 1 in (x.stride(-1), x.stride(1)) else x.contiguous()
    sums, dt = _decays(launch, dt, a, chunk, dt_bias)
    states = _chunk_states(launch, b, x, dt, sums)
    states, final = _passed(launch, states, sums, c.dtype)
    products = _products(launch, c, b, chunk)
    out = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    ungated = None if z is None else torch.empty(x.shape, device=x.device, dtype=x.dtype)
    launch("chunk_scan_fwd", products, x, z, out, ungated, dt, sums, c, states, d)
    return Scanned(out, ungated, dt, sums, states, final)


def _decays(
    launch: Launches, dt: Tensor, a: Tensor, chunk: int, dt_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Sums of a dt over each chunk, and dt, both (B, H, C, L) (_chunk_cumsum_fwd)."""
    batch, tokens, heads = dt.shape
    shape = (batch, heads, math.ceil(tokens / chunk), chunk)
    made = torch.empty(shape, device=dt.device, dtype=torch.float32)
    sums = torch.empty(shape, device=dt.device, dtype=torch.float32)
    launch("chunk_cumsum_fwd", dt, a, dt_bias, made, sums)
    return sums, made


def _chunk_states(launch: Launches, b: Tensor, x: Tensor, dt: Tensor, sums: Tensor) -> Tensor:
    """What each chunk adds to the states, (B, C, H, P, N) in fp32 (_chunk_state_fwd)."""
    batch, _, heads, channels = x.shape
    shape = (batch, dt.shape[2], heads, channels, b.shape[-1])
    states = torch.empty(shape, device=x.device, dtype=torch.float32)
    launch("chunk_state_fwd", x, b, states, dt, sums)
    return states


def _passed(launch: Launches, states: Tensor, sums: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The states before each chunk, in `dtype`, and those after the last (_state_passing_fwd)."""
    batch, _, heads, channels, width = states.shape
    out = torch.empty(states.shape, device=states.device, dtype=dtype)
    final = torch.empty((batch, heads, channels, width), device=states.device, dtype=torch.float32)
    launch("state_passing_fwd", states, out, final, sums)
    return out, final


def _products(launch: Launches, c: Tensor, b: Tensor, chunk: int) -> Tensor:
    """c b^T within each chunk, (B, C, G, L, L) in fp32 (_bmm_chunk_fwd)."""
    batch, tokens, groups, _ = c.shape
    shape = (batch, math.ceil(tokens / chunk), groups, chunk, chunk)
    out = torch.empty(shape, device=c.device, dtype=torch.float32)
    launch("bmm_chunk_fwd", c, b, out)
    return out


class Given(NamedTuple):
    """Where a scan's gradients are written, where its caller has room for them."""

    dx: Tensor | None = None
    ddt: Tensor | None = None
    db: Tensor | None = None
    dc: Tensor | None = None
    dz: Tensor | None = None


class Gradients(NamedTuple):
    """Those of x, dt, a, b, c, d, z and of dt's bias; `out`: the output once more, gated, where asked for."""

    dx: Tensor
    ddt: Tensor
    da: Tensor
    db: Tensor
    dc: Tensor
    dd: Tensor | None
    dz: Tensor | None
    dbias: Tensor | None
    out: Tensor | None


def scan_backward(
    launch: Launches,
    grad: Tensor,
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    out: Tensor,
    chunk: int,
    d: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    given: Given,
    again: bool = False,
) -> Gradients:
    """The gradients of `scan`, which makes its states again; `again`: its gated output too
    (_mamba_chunk_scan_combined_bwd).
    """
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    batch, _, heads, channels = x.shape
    db_given = torch.empty_like(b) if given.db is None else given.db
    dc_given = torch.empty_like(c) if given.dc is None else given.dc
    ddt_given = torch.empty_like(dt) if given.ddt is None else given.ddt
    dt_in = dt.clone()
    sums, dt = _decays(launch, dt_in, a, chunk, dt_bias)
    products = _products(launch, c, b, chunk)
    states = _chunk_states(launch, b, x, dt, sums)
    states, _final = _passed(launch, states, sums, states.dtype)
    dz, dd, gated = given.dz, None, None
    if z is not None:
        dz, grad, dd, gated = _gate_backward(launch, grad, out, z, x, d, dz, products.shape[1], chunk, again)
    chunks = products.shape[1]
    shape = (batch, chunks, heads, channels, c.shape[-1])
    dstates = torch.empty(shape, device=c.device, dtype=states.dtype)
    launch("chunk_scan_bwd_dstates", grad, c, dstates, sums)
    dstates, dlast, states = _passed_backward(launch, states, sums, dstates, x.dtype)
    dx, ddt, dd_of_x = _inputs_backward(launch, x, dt, sums, b, products, grad, dstates, d, given.dx)
    db, ddecay_next = _split_sums(launch, "chunk_state_bwd_db", (x, dstates, b, dt, sums), x, b)
    ddecay_next = torch.cumsum(ddecay_next, dim=-1, out=ddecay_next)
    dc, ddecay_prev = _split_sums(launch, "chunk_scan_bwd_dc", (grad, states, c, sums), grad, c)
    dproducts = _products_backward(launch, x, dt, sums, grad, products)
    launch("bmm_chunk_bwd", c, dproducts, db_given, db)
    launch("bmm_chunk_bwd", b, dproducts, dc_given, dc)
    dd = dd_of_x if z is None else dd
    ddecay_prev[..., -1] += dlast
    before = ddecay_prev.flip([-1]).cumsum(dim=-1).flip([-1])
    ddecay = _decays_backward(launch, x, grad, dt, sums, products)
    ddecay += ddecay_next + before
    dbias = None if dt_bias is None else torch.empty_like(dt_bias, dtype=torch.float32)
    da = torch.empty_like(a, dtype=torch.float32)
    launch("chunk_cumsum_bwd", ddecay, ddt, dt_in, a, dt_bias, ddt_given, da, dbias)
    return Gradients(dx, ddt_given, da, db_given, dc_given, dd, dz, dbias, gated)


def _gate_backward(
    launch: Launches,
    grad: Tensor,
    out: Tensor,
    z: Tensor,
    x: Tensor,
    d: Tensor | None,
    dz: Tensor | None,
    chunks: int,
    chunk: int,
    again: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The gradients of z, of what it gates and of d, and the gated output (_chunk_scan_bwd_dz)."""
    batch, _, heads, _ = x.shape
    rows = (math.ceil(chunk / _TILE), batch, chunks, heads, 1)
    dd = None if d is None else torch.empty(rows, device=x.device, dtype=torch.float32)
    dz = torch.empty_like(z) if dz is None else dz
    gated = torch.empty_like(x) if again else None
    made = torch.empty_like(grad)
    launch("chunk_scan_bwd_dz", grad, out, z, x, d, gated, dz, made, dd)
    if dd is not None and d is not None:
        dd = dd.sum(dim=(0, 1, 2)).to(dtype=d.dtype).view(heads)
    return dz, made, dd, gated


def _passed_backward(
    launch: Launches, states: Tensor, sums: Tensor, dstates: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of what chunks add and of their last decay, and the states in `dtype`
    (_state_passing_bwd).
    """
    batch, chunks, heads, channels, width = states.shape
    made = torch.empty_like(dstates, dtype=dtype)
    cast = None if dtype == states.dtype else torch.empty_like(states, dtype=dtype)
    blocks = math.ceil(channels * width / 64)
    parts = torch.empty(batch, heads, chunks, blocks, dtype=torch.float32, device=sums.device)
    launch("state_passing_bwd", dstates, states, sums, made, parts, cast)
    parts = parts.sum(dim=-1).to(dtype=sums.dtype)
    return made, parts, states if cast is None else cast


def _inputs_backward(
    launch: Launches,
    x: Tensor,
    dt: Tensor,
    sums: Tensor,
    b: Tensor,
    products: Tensor,
    grad: Tensor,
    dstates: Tensor,
    d: Tensor | None,
    dx: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of x, dt and d (_chunk_scan_chunk_state_bwd_dx)."""
    batch, chunks, heads, chunk = x.shape[0], dt.shape[2], x.shape[2], dt.shape[3]
    rows = (math.ceil(chunk / _TILE), batch, chunks, heads, 1)
    dd = None if d is None else torch.zeros(rows, device=x.device, dtype=torch.float32)
    dx = torch.empty_like(x) if dx is None else dx
    ddt = torch.empty(dt.shape, device=grad.device, dtype=torch.float32)
    launch("chunk_scan_chunk_state_bwd_dx", x, products, grad, dt, sums, d, b, dstates, dx, ddt, dd)
    if dd is not None and d is not None:
        dd = dd.sum(dim=(0, 1, 2))
        dd = dd.sum(dim=-1)
        dd = dd.to(dtype=d.dtype)
    return dx, ddt, dd


def _splits(launch: Launches, batch: int, chunks: int, heads: int, groups: int) -> int:
    """Parts that the heads of a group are summed in, so that programs fill the multiprocessors."""
    of_group = heads // groups
    together = max(min(math.ceil(batch * chunks * heads / launch.processors), of_group), 1)
    return math.ceil(of_group / together)


def _split_sums(
    launch: Launches, kernel: str, operands: tuple[Tensor, ...], x: Tensor, like: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of b or c (B, S, G, N) in fp32, and its part of the decays' (_chunk_state_bwd_db,
    _chunk_scan_bwd_dC).
    """
    sums = operands[-1]
    batch, tokens, groups, width = like.shape
    decay = torch.empty(sums.shape, device=x.device, dtype=torch.float32)
    splits = _splits(launch, batch, sums.shape[2], x.shape[2], groups)
    made = torch.empty(batch, tokens, splits, groups, width, device=x.device, dtype=torch.float32)
    launch(kernel, *operands, made, decay)
    made = made.sum(2)
    return made, decay


def _products_backward(
    launch: Launches, x: Tensor, dt: Tensor, sums: Tensor, grad: Tensor, products: Tensor
) -> Tensor:
    """The gradient of c b^T (_chunk_scan_bwd_dcb)."""
    batch, chunks, groups, chunk, _ = products.shape
    splits = _splits(launch, batch, chunks, x.shape[2], groups)
    shape = (batch, chunks, splits, groups, chunk, chunk)
    made = torch.empty(shape, device=x.device, dtype=torch.float32)
    launch("chunk_scan_bwd_dcb", x, grad, dt, sums, made)
    return made.sum(2)


def _decays_backward(
    launch: Launches, x: Tensor, grad: Tensor, dt: Tensor, sums: Tensor, products: Tensor
) -> Tensor:
    """The decays' gradient within chunks (_chunk_scan_bwd_ddAcs_stable)."""
    batch, heads, chunks, chunk = dt.shape
    rows = math.ceil(chunk / _TILE)
    made = torch.empty(batch, heads, chunks, rows, chunk, device=x.device, dtype=torch.float32)
    launch("chunk_scan_bwd_ddAcs_stable", x, grad, dt, sums, products, made)
    return made.sum(dim=3)


class ChunkScan(torch.autograd.Function):
    """mamba_chunk_scan_combined: the scan alone, between the model's own convolution and output."""

    @staticmethod
    def forward(
        ctx: Any,
        launch: Launches,
        x: Tensor,
        dt: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        chunk: int,
        d: Tensor | None,
        dt_bias: Tensor | None,
        states: bool,
    ) -> Any:
        """The output (B, S, H, P), with the final states where `states` asks for them."""
        made = scan(launch, x, dt, a, b, c, chunk, d, None, dt_bias)
        ctx.save_for_backward(made.out, x, dt, made.sums, a, b, c, d, dt_bias)
        ctx.launch, ctx.chunk = launch, chunk
        return (made.out, made.final) if states else made.out

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The gradients of every tensor, whether it trains or not."""
        out, x, dt, _sums, a, b, c, d, dt_bias = ctx.saved_tensors
        found = scan_backward(ctx.launch, grad, x, dt, a, b, c, out, ctx.chunk, d, None, dt_bias, Given())
        of = (found.dx, found.ddt, found.da, found.db, found.dc, None, found.dd, found.dbias)
        return None, *of, None
