"""Rotary embedding op by op: how a family writes it decides its temporaries (transformers 5.23, each apply_rotary_pos_emb)."""

from __future__ import annotations

from planner.forward.walk import Walk
from planner.spec import Attention
from planner.tape.rules import add, cast, concatenate, mul, part_of, unary
from planner.tape.tape import Tensor

FLOAT32 = ("half_float32", "pairs_float32", "complex")  # computed in fp32 and cast back
SPLIT = ("split", "interleaved")  # both halves rotated apart, then concatenated


def joined(spec: Attention) -> bool:
    """Whether q and k are concatenated last, which leaves them head by head in memory."""
    if spec.kind == "mla":
        return True
    return bool(spec.rotary_dim) and (spec.rotary_joined or spec.rotary_dim < spec.head_dim or spec.rotary in SPLIT)


def rotate(w: Walk, x: Tensor, spec: Attention, tables: tuple[Tensor, Tensor], named: list[Tensor] | None = None) -> Tensor:
    """q or k with its first `rotary_dim` features rotated and the others passed through, in its own dtype.

    The rotated part and what it was cut from are added to `named` where the family's code keeps names for them.
    """
    t, size = w.t, int(x.shape[-1])  # type: ignore[arg-type]
    dim = min(spec.rotary_dim, size)
    front = x.shape[:-1]
    wide = cast(t, x, "float32", "fp32 copy for rotary") if spec.rotary in ("pairs_float32", "complex") else x
    rotated = wide if dim == size else part_of(t, wide, (*front, dim))
    out = (_apart if spec.rotary in SPLIT else _complex if spec.rotary == "complex" else _together)(w, rotated, tables)
    if named is not None:
        named += [out, x]
    if dim != size or spec.rotary_joined:
        out = concatenate(t, (out, part_of(t, wide, (*front, size - dim))), x.shape, "rotary output")
    return cast(t, out, x.dtype, "rotary output")


def _together(w: Walk, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """x * cos + rotate_half(x) * sin."""
    t, half = w.t, (*x.shape[:-1], int(x.shape[-1]) // 2)  # type: ignore[arg-type]
    cos, sin = tables

    def turned() -> Tensor:
        first, second = part_of(t, x, half), part_of(t, x, half)
        return concatenate(t, (unary(t, "neg", second, "negated half"), first), x.shape, "rotated halves")

    return add(t, mul(t, x, cos, "x cos"), mul(t, turned(), sin, "x sin"), "rotary output")


def _apart(w: Walk, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """cat(first * cos - second * sin, second * cos + first * sin)."""
    t, half = w.t, (*x.shape[:-1], int(x.shape[-1]) // 2)  # type: ignore[arg-type]
    cos, sin = tables
    first, second = part_of(t, x, half), part_of(t, x, half)
    left = add(t, mul(t, first, cos, "first cos"), mul(t, second, sin, "second sin"), "first half")
    right = add(t, mul(t, second, cos, "second cos"), mul(t, first, sin, "first sin"), "second half")
    return concatenate(t, (left, right), x.shape, "rotary output")


def _complex(w: Walk, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Pairs as complex numbers times complex frequencies (DeepSeek-V2): one product of the fp32 input's size."""
    return mul(w.t, x, tables[0], "rotary product")
