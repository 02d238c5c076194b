"""mamba-ssm's extension as a dry run can load it: what its C++ allocates (2.3.2.post1
csrc/selective_scan/selective_scan.cpp, read), nothing computed.
"""

from __future__ import annotations

from typing import Any

import torch


def fwd(u: Any, delta: Any, a: Any, b: Any, c: Any, d: Any, z: Any, bias: Any, softplus: bool) -> list[Any]:
    """selective_scan_fwd."""
    gated = None if z is None else torch.empty_like(z)
    out = torch.empty_like(delta)
    shape = (u.shape[0], u.shape[1], (u.shape[2] + 2047) // 2048, a.shape[1] * 2)
    states = torch.empty(shape, dtype=a.dtype, device=u.device)
    return [out, states] + ([] if gated is None else [gated])


def bwd(
    u: Any,
    delta: Any,
    a: Any,
    b: Any,
    c: Any,
    d: Any,
    z: Any,
    bias: Any,
    dout: Any,
    states: Any,
    out: Any,
    dz: Any,
    softplus: bool,
    again: bool,
) -> list[Any]:
    """selective_scan_bwd."""
    if z is not None and dz is None:
        dz = torch.empty_like(z)
    gated = torch.empty_like(out) if z is not None and again else None
    du, ddelta, da = torch.empty_like(u), torch.empty_like(delta), torch.zeros_like(a)
    db = torch.zeros_like(b, dtype=torch.float32)
    dc = torch.zeros_like(c, dtype=torch.float32)
    dd = None if d is None else torch.zeros_like(d)
    dbias = None if bias is None else torch.zeros_like(bias)
    found = [du, ddelta, da, db.to(b.dtype), dc.to(c.dtype), dd, dbias]
    return found + ([] if z is None else [dz]) + ([gated] if again else [])
