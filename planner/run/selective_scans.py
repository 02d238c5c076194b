"""Mamba 1 by mamba-ssm's kernels: what 2.3.2.post1 ops/selective_scan_interface.py makes and saves,
allocation by allocation. The scan is CUDA code: what it makes was read in csrc/selective_scan/
selective_scan.cpp, and has not been run.

B batch, D channels, T tokens, N states, R the rank of dt.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.nn.functional import linear

from memplan.planner.run.causal_convolution import gradients
from memplan.planner.run.launches import Launches

_CHUNK = 2048
"""Tokens between two states that are kept (selective_scan.cpp n_chunks)."""


def _same_dtypes(u: Tensor, *others: Tensor | None) -> None:
    """Raise where the kernel does (selective_scan.cpp TORCH_CHECK of scalar_type)."""
    found = {other.dtype for other in others if other is not None} - {u.dtype}
    if found:
        raise RuntimeError(
            f"selective_scan reads dt, B, C and the gate in the dtype of its input, {u.dtype}, and one has "
            f"{found.pop()}"
        )


def _forward(u: Tensor, dt: Tensor, a: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The scan of u and dt (B, D, T), laid out as dt, its states, and the gated output, laid out as z
    (selective_scan_fwd).
    """
    gated = None if z is None else torch.empty_like(z)
    out = torch.empty_like(dt)
    shape = (u.shape[0], u.shape[1], math.ceil(u.shape[2] / _CHUNK), a.shape[1] * 2)
    states = torch.empty(shape, dtype=a.dtype, device=u.device)
    return out, states, gated


def _backward(
    u: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    out: Tensor | None,
    dz: Tensor | None,
    again: bool,
) -> tuple[Tensor | None, ...]:
    """The gradients of u, dt, a, b, c, d, dt's bias and z, and the gated output (selective_scan_bwd); `dz`:
    room for that of z; `again`: whether the output is made again.
    """
    if z is not None and dz is None:
        dz = torch.empty_like(z)
    gated = torch.empty_like(out) if again and out is not None else None
    du, ddt, da = torch.empty_like(u), torch.empty_like(dt), torch.zeros_like(a)
    db, dc = (torch.zeros_like(each, dtype=torch.float32) for each in (b, c))
    dd = None if d is None else torch.zeros_like(d)
    dbias = None if dt_bias is None else torch.zeros_like(dt_bias)
    return du, ddt, da, db.to(b.dtype), dc.to(c.dtype), dd, dbias, dz, gated


def _along(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


class SelectiveScan(torch.autograd.Function):
    """selective_scan_fn: the scan alone, between the model's own convolution and output."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        dt: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        d: Tensor | None,
        z: Tensor | None,
        dt_bias: Tensor | None,
        last: bool,
    ) -> Any:
        """u, dt and the gate z (B, D, T), a (D, N), b and c (B, N, T); with the last states (B, D, N) where
        `last` asks for them.
        """
        _same_dtypes(u, dt, b, c, z)
        u, dt, b, c = map(_along, (u, dt, b, c))
        z = None if z is None else _along(z)
        out, states, gated = _forward(u, dt, a, z)
        b, c = b.unsqueeze(1), c.unsqueeze(1)
        if gated is None:
            ctx.save_for_backward(u, dt, a, b, c, d, None, dt_bias, states, None)
        else:
            ctx.save_for_backward(u, dt, a, b, c, d, z, dt_bias, states, out)
        made = out if gated is None else gated
        return (made, states[:, :, -1, 1::2]) if last else made

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The gradients of every tensor, whether it trains or not."""
        u, dt, a, b, c, d, z, dt_bias, _states, out = ctx.saved_tensors
        grad = _along(grad)
        found = _backward(u, dt, a, b, c, d, z, dt_bias, out, None, False)
        du, ddt, da, db, dc, dd, dbias, dz, _gated = found
        assert db is not None and dc is not None
        return du, ddt, da, db.squeeze(1), dc.squeeze(1), dd, dz, dbias, None


class Inner(torch.autograd.Function):
    """mamba_inner_fn: a mixer from the projected input (B, 2 D, T) to the projected output (B, T, out); the
    convolution and dt are made again in the backward.
    """

    @staticmethod
    @custom_fwd(device_type="cuda")  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any,
        launch: Launches,
        norms: tuple[bool, bool, bool],
        projected: Tensor,
        taps: Tensor,
        taps_bias: Tensor | None,
        of_x: Tensor,
        of_dt: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        d: Tensor,
        dt_bias: Tensor,
    ) -> Tensor:
        """taps (D, 1, W), of_x (R + 2 N, D), of_dt (D, R), weight (out, D), a (D, N); `norms`: whether b, c
        and dt pass an RMSNorm.
        """
        tokens, rank, states = projected.shape[-1], of_dt.shape[1], a.shape[-1]
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            of_x, of_dt, weight = of_x.to(dtype), of_dt.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        projected = _along(projected)
        taps = taps.squeeze(1)
        x, z = projected.chunk(2, dim=1)
        convolved = torch.empty_like(x)
        low = linear(convolved.transpose(1, 2).reshape(-1, x.shape[1]), of_x)
        dt = _per_row(of_dt @ low[:, :rank].t(), tokens)
        held = [_states_of(low[:, rank : rank + states], tokens), _states_of(low[:, -states:], tokens), dt]
        del dt
        b, c, dt = _normed(launch, held, norms, (0, 1, 2))
        del held
        _same_dtypes(convolved, dt, b, c, z)
        out, kept, gated = _forward(convolved, dt, a, z)
        del convolved, dt
        ctx.save_for_backward(
            projected, taps, taps_bias, low, of_x, of_dt, weight, a, b, c, d, dt_bias, kept, out
        )
        ctx.launch, ctx.norms, ctx.biased = launch, norms, bias is not None
        assert gated is not None
        return linear(gated.transpose(1, 2), weight, bias)

    @staticmethod
    @custom_bwd(device_type="cuda")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The gradients of every tensor, those of the projections' weights too, whether they train or not."""
        (projected, taps, taps_bias, low, of_x, of_dt, weight, a, b, c, d, dt_bias, _kept, out) = (
            ctx.saved_tensors
        )
        tokens, rank, states = projected.shape[-1], of_dt.shape[1], a.shape[-1]
        x, z = projected.chunk(2, dim=1)
        grad = _along(grad)
        convolved = torch.empty_like(x)
        held = [b, c, _per_row(of_dt @ low[:, :rank].t(), tokens)]
        del b, c
        b, c, dt = _normed(ctx.launch, held, ctx.norms, (2, 0, 1))
        del held
        dprojected = torch.empty_like(projected)
        dx, dz = dprojected.chunk(2, dim=1)
        grad = grad.permute(2, 0, 1).reshape(grad.shape[2], -1)
        _of_gated = _per_row(weight.t() @ grad, tokens)
        found = _backward(convolved, dt, a, b, c, d, z, dt_bias, out, dz, True)
        dconvolved, ddt, da, db, dc, dd, dbias, dz, gated = found
        del found
        assert dconvolved is not None and ddt is not None and gated is not None
        assert db is not None and dc is not None
        dweight = torch.einsum("eB,dB->ed", grad, gated.transpose(0, 1).reshape(gated.shape[1], -1))
        dbias_out = grad.sum(dim=(0, 1)) if ctx.biased else None
        dlow = torch.empty_like(low)
        db = db.squeeze(1).transpose(1, 2).reshape(-1, states).contiguous()
        dlow[:, rank : rank + states] = db
        db = None
        dc = dc.squeeze(1).transpose(1, 2).reshape(-1, states).contiguous()
        dlow[:, -states:] = dc
        dc = None
        ddt = ddt.transpose(0, 1).reshape(ddt.shape[1], -1)
        dof_dt = torch.einsum("dB,Br->dr", ddt, low[:, :rank])
        dlow[:, :rank] = torch.einsum("dB,dr->Br", ddt, of_dt)
        dconvolved = dconvolved.transpose(0, 1).reshape(dconvolved.shape[1], -1)
        dof_x = torch.einsum("Br,Bd->rd", dlow, convolved.transpose(1, 2).reshape(-1, convolved.shape[1]))
        dconvolved = torch.addmm(dconvolved, of_x.t(), dlow.t(), out=dconvolved)
        dconvolved = dconvolved.unflatten(1, (x.shape[0], tokens)).transpose(0, 1)
        _, dtaps, dtaps_bias = gradients(x, taps, taps_bias, dconvolved, dx)
        return (
            None,
            None,
            dprojected,
            dtaps.unsqueeze(1),
            dtaps_bias,
            dof_x,
            dof_dt,
            dweight,
            dbias_out,
            da,
            dd,
            dbias,
        )


def _per_row(made: Tensor, tokens: int) -> Tensor:
    """(D, B T) as (B, D, T), the channels outermost."""
    return made.unflatten(1, (-1, tokens)).transpose(0, 1)


def _states_of(low: Tensor, tokens: int) -> Tensor:
    """(B T, N) as (B, 1, N, T), whole."""
    return low.unflatten(0, (-1, tokens)).transpose(1, 2).unsqueeze(1).contiguous()


def _normed(
    launch: Launches, held: list[Tensor], norms: tuple[bool, bool, bool], order: tuple[int, ...]
) -> list[Tensor]:
    """b, c and dt, each through its RMSNorm, in this order: laid out token by token, normed and laid out
    back, each a copy that drops the one before.
    """
    tokens = held[0].shape[-1]
    for place in order:
        if norms[place]:
            wide = held[place].dim() == 4
            held[place] = _rows(held[place])
            held[place] = _rms(launch, held[place])
            held[place] = _columns(held[place], tokens, wide)
    return held


def _rows(x: Tensor) -> Tensor:
    """(B, width, T) or (B, 1, width, T) as (B T, width)."""
    x = x.squeeze(1) if x.dim() == 4 else x
    return x.transpose(1, 2).reshape(-1, x.shape[1]).contiguous()


def _columns(rows: Tensor, tokens: int, wide: bool) -> Tensor:
    made = rows.unflatten(0, (-1, tokens)).transpose(1, 2)
    return (made.unsqueeze(1) if wide else made).contiguous()


def _rms(launch: Launches, rows: Tensor) -> Tensor:
    """rms_norm_forward, triton/layer_norm.py _layer_norm_fwd."""
    out = torch.empty_like(rows)
    rstd = torch.empty((rows.shape[0],), dtype=torch.float32, device=rows.device)
    launch(f"layer_norm_fwd {rows.shape[1]}", rows, out, rstd)
    return out
