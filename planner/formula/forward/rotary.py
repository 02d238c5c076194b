"""Rotary embedding op by op: how a family writes it decides its temporaries (transformers 5.23, each
apply_rotary_pos_emb).
"""

from __future__ import annotations

from collections.abc import Callable

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.tape.ops import add, cast, concatenate, mul, part_of, unary
from memplan.planner.formula.tape.tape import Tensor
from memplan.planner.inputs.spec import Attention

FLOAT32 = (
    "half_float32",
    "pairs_float32",
    "complex",
)  # computed in fp32 and cast back; the others leave what tables and input promote to
SPLIT = ("split", "interleaved")  # both halves rotated apart, then concatenated


def joined(spec: Attention) -> bool:
    """Whether q and k are concatenated last, which leaves them head by head in memory (GPT-J rotates before
    it transposes).
    """
    if spec.kind == "mla":
        return True
    if not spec.rotary_dim or spec.rotary == "pairs":
        return False
    return spec.rotary_joined or spec.rotary_dim < spec.head_dim or spec.rotary in SPLIT


def rotate(
    w: Context,
    x: Tensor,
    spec: Attention,
    tables: tuple[Tensor, Tensor],
    kept_alive: list[Tensor] | None = None,
) -> Tensor:
    """q or k with its first `rotary_dim` features rotated and the others passed through.

    The rotated part and what it was cut from are added to `kept_alive` where the family's code keeps names
    for them.
    """
    t, size = w.t, int(x.shape[-1])  # type: ignore[arg-type]
    dim = min(spec.rotary_dim, size)
    front = x.shape[:-1]
    wide = cast(t, x, "float32", "fp32 copy for rotary") if spec.rotary in ("pairs_float32", "complex") else x
    rotated = wide if dim == size else part_of(t, wide, (*front, dim))
    out = WRITTEN.get(spec.rotary, _in_order)(w, rotated, tables)
    if kept_alive is not None:
        kept_alive += [out, x]
    if dim != size or spec.rotary_joined:
        out = concatenate(t, (out, part_of(t, wide, (*front, size - dim))), x.shape, "rotary output")
    return cast(t, out, x.dtype, "rotary output") if spec.rotary in FLOAT32 else out


def gathered(w: Context, spec: Attention, dtype: str) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    """GPT-J's sines and cosines, gathered in every layer from its own table of P positions, and what stays
    kept_alive beside them.

    The table is repeated and the position ids are spread over its columns; both halves of `sincos` are views.
    """
    t, dim = w.t, spec.rotary_dim
    rows = w.batch if w.setup.packed_documents > 1 else 1
    positions = w.parameter_table.spec.max_positions or 1
    table = t.alloc(
        "repeated table of positions",
        (rows, positions, dim),
        "float32",
        "embed_positions.repeat in every layer",
    )
    ids = t.alloc("repeated position ids", (rows, w.sequence, dim), "int64", "what is gathered")
    wide = t.alloc("sines and cosines", (rows, w.sequence, dim), "float32", "gathered from the layer's table")
    sincos = cast(t, wide, dtype, "sines and cosines")
    half = (rows, w.sequence, dim // 2)
    return (sincos.view(*half), sincos.view(*half)), [table, ids]


def _interleaved(w: Context, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """GPT-J: sines and cosines repeated for neighbors in every call, saved for the product with q and with
    k.
    """
    cos, sin = (
        w.t.alloc(
            f"rotary {name}",
            (part.shape[0], part.shape[1], 1, x.shape[-1]),
            part.dtype,
            "repeat_interleave in every call",
        )
        for name, part in zip(("cos", "sin"), tables, strict=True)
    )
    return _in_order(w, x, (cos, sin))


def _in_order(w: Context, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """x * cos + rotate_half(x) * sin."""
    t, half = w.t, (*x.shape[:-1], int(x.shape[-1]) // 2)  # type: ignore[arg-type]
    cos, sin = tables

    def rotated_half() -> Tensor:
        first, second = part_of(t, x, half), part_of(t, x, half)
        return concatenate(t, (unary(t, "neg", second, "negated half"), first), x.shape, "rotated halves")

    return add(t, mul(t, x, cos, "x cos"), mul(t, rotated_half(), sin, "x sin"), "rotary output")


def _apart(w: Context, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """cat(first * cos - second * sin, second * cos + first * sin)."""
    t, half = w.t, (*x.shape[:-1], int(x.shape[-1]) // 2)  # type: ignore[arg-type]
    cos, sin = tables
    first, second = part_of(t, x, half), part_of(t, x, half)
    left = add(t, mul(t, first, cos, "first cos"), mul(t, second, sin, "second sin"), "first half")
    right = add(t, mul(t, second, cos, "second cos"), mul(t, first, sin, "first sin"), "second half")
    return concatenate(t, (left, right), x.shape, "rotary output")


def _complex(w: Context, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Pairs as complex numbers times complex frequencies (DeepSeek-V2): one product of the fp32 input's
    size.
    """
    return mul(w.t, x, tables[0], "rotary product")


WRITTEN: dict[str, Callable[[Context, Tensor, tuple[Tensor, Tensor]], Tensor]] = {
    **dict.fromkeys(SPLIT, _apart),
    "complex": _complex,
    "pairs": _interleaved,
}
