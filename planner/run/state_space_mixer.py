"""A Mamba 2 mixer as one function, from the projected input to the projected output: what mamba-ssm
2.3.2.post1 ops/triton/ssd_combined.py MambaSplitConv1dScanCombinedFn and layernorm_gated.py make and save,
allocation by allocation.

B batch, S tokens, H heads of P channels, I = H P, G groups of N states, W = I + 2 G N convolved channels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.nn.functional import linear

from memplan.planner.run.causal_convolution import gradients
from memplan.planner.run.launches import Launches
from memplan.planner.run.state_spaces import Given, scan, scan_backward


class Shape(NamedTuple):
    """What the sizes of the tensors do not say."""

    chunk: int
    channels: int
    groups: int


class Mixer(torch.autograd.Function):
    """Convolution, scan, gate and output projection; a norm stands between scan and projection where it has a
    weight, and reads the gate. Saves its input, the scan's output, the weights in the dtype of the product;
    all else is made again.
    """

    @staticmethod
    @custom_fwd(device_type="cuda")  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any,
        launch: Launches,
        shape: Shape,
        projected: Tensor,
        taps: Tensor,
        taps_bias: Tensor | None,
        dt_bias: Tensor,
        a: Tensor,
        d: Tensor,
        norm: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """projected (B, S, 2 I + 2 G N + H), taps (W, K), a, d and dt_bias (H), weight (out, I)."""
        z, convolved, dt = torch.split(projected, _widths(shape, taps, d), dim=-1)
        made = torch.empty_like(_aligned(convolved).transpose(1, 2)).transpose(1, 2)
        x, b, c = _parts(made, shape, d)
        gate = z.unflatten(-1, (-1, shape.channels))
        found = scan(launch, x, dt, a, b, c, shape.chunk, d, gate if norm is None else None, dt_bias)
        if norm is None:
            saved, rstd, out = found.ungated, None, found.out.flatten(2)
        else:
            flat = found.out.flatten(2).flatten(0, 1)
            saved, normed = found.out, torch.empty_like(flat)
            rstd = torch.empty(shape.groups * flat.shape[0], dtype=torch.float32, device=flat.device)
            out = normed.view(*found.out.shape[:2], -1)
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            out, weight = out.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        out = linear(out, weight, bias)
        ctx.save_for_backward(projected, taps, taps_bias, saved, a, d, dt_bias, norm, rstd, weight, bias)
        ctx.launch, ctx.shape = launch, shape
        return out

    @staticmethod
    @custom_bwd(device_type="cuda")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The gradients of every tensor, that of the output's weight too, whether it trains or not."""
        projected, taps, taps_bias, out, a, d, dt_bias, norm, rstd, weight, bias = ctx.saved_tensors
        launch, shape, widths = ctx.launch, ctx.shape, _widths(ctx.shape, taps, d)
        again = torch.empty(*out.shape[:2], widths[0], device=out.device, dtype=out.dtype)
        z, convolved, dt = torch.split(projected, widths, dim=-1)
        made = torch.empty_like(_aligned(convolved).transpose(1, 2)).transpose(1, 2)
        x, b, c = _parts(made, shape, d)
        dprojected = torch.empty_like(projected)
        dz, dconvolved, ddt = torch.split(dprojected, widths, dim=-1)
        dmade = torch.empty_like(convolved)
        dx, db, dc = _parts(dmade, shape, d)
        of_out = grad
        grad = linear(grad, weight.t()).unflatten(-1, (-1, shape.channels))
        given = Given(dx, ddt, db, dc, dz.unflatten(-1, (-1, shape.channels)))
        if norm is None:
            gate = z.unflatten(-1, (-1, shape.channels))
            found = scan_backward(
                launch, grad, x, dt, a, b, c, out, shape.chunk, d, gate, dt_bias, given, again=True
            )
            dnorm, read = None, None if found.out is None else found.out.flatten(2)
        else:
            of_scan, dnorm = _norm_backward(launch, out, norm, shape.groups)
            of_scan = of_scan.view(out.shape)
            found = scan_backward(launch, of_scan, x, dt, a, b, c, out, shape.chunk, d, None, dt_bias, given)
            read = again
        dweight = torch.einsum("bso,bsd->od", of_out, read)
        dbias = None if bias is None else of_out.sum(dim=(0, 1))
        columns, of_made, room = (_aligned(each).transpose(1, 2) for each in (convolved, dmade, dconvolved))
        _, dtaps, dtaps_bias = gradients(columns, taps, taps_bias, of_made, room)
        return (
            None,
            None,
            dprojected,
            dtaps,
            dtaps_bias,
            found.dbias,
            found.da,
            found.dd,
            dnorm,
            dweight,
            dbias,
        )


def _widths(shape: Shape, taps: Tensor, d: Tensor) -> list[int]:
    """Columns of the gate, of what is convolved and of dt in the projected input."""
    heads = d.shape[0]
    return [heads * shape.channels, taps.shape[0], heads]


def _parts(made: Tensor, shape: Shape, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, S, H, P), b and c (B, S, G, N) in what the convolution makes."""
    inner = d.shape[0] * shape.channels
    states = (made.shape[-1] - inner) // 2
    x, b, c = torch.split(made, [inner, states, states], dim=-1)
    return (
        x.unflatten(-1, (-1, shape.channels)),
        b.unflatten(-1, (shape.groups, -1)),
        c.unflatten(-1, (shape.groups, -1)),
    )


def _aligned(x: Tensor) -> Tensor:
    """What the convolution reads: rows that begin at a multiple of 8 elements, or a copy (ensure_stride)."""
    return x if x.stride(1) % 8 == 0 else x.contiguous()


def _norm_backward(launch: Launches, out: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The gradients of a gated RMSNorm's input (B S, I) and weight; those of the gate and the output made
    again have room already (layernorm_gated.py _layer_norm_bwd).
    """
    rows = out.flatten(2).flatten(0, 1)
    dx = torch.empty_like(rows)
    width = rows.shape[-1] // groups
    block = min(65536 // rows.element_size(), 1 << (width - 1).bit_length())
    warps = min(max(block // 256, 1), 8)
    programs = math.ceil(launch.processors * math.ceil(4 / warps) / groups)
    parts = torch.empty((programs, rows.shape[-1]), dtype=torch.float32, device=weight.device)
    return dx, parts.sum(0).to(weight.dtype)
