"""Rotary embedding op by op: how a family writes it decides its temporaries (transformers 5.24, each
apply_rotary_pos_emb).
"""

from __future__ import annotations

from collections.abc import Callable

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.symbolic.expr import Sized
from memplan.planner.formula.tape.ops import add, cast, concatenate, mul, part_of, unary
from memplan.planner.formula.tape.tape import Shape, Tensor
from memplan.planner.inputs.spec import Attention

FLOAT32 = (
    "half_float32",
    "pairs_float32",
    "complex",
)  # computed in fp32 and cast back; the others leave what tables and input promote to
COPIED = ("pairs_float32", "complex")  # q and k are copied in fp32 first
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
    pair: tuple[Tensor, Tensor],
    spec: Attention,
    tables: tuple[Tensor, Tensor],
    kept_alive: list[Tensor] | None = None,
) -> list[Tensor]:
    """q and k, each with its first `rotary_dim` features rotated and the others passed through.

    fp32 copies of both are made first, and both results are cast back last; complex ones one by one. The
    rotated parts and what they were cut from are added to `kept_alive` where the family's code keeps names
    for them.
    """
    t = w.t
    wide = [cast(t, x, "float32", "fp32 copy for rotary") for x in pair] if spec.rotary in COPIED else [*pair]
    made: list[Tensor] = []
    for x, copied in zip(pair, wide, strict=True):
        out = _rotated(w, copied, spec, tables)
        made.append(cast(t, out, x.dtype, "rotary output") if spec.rotary == "complex" else out)
        del out
    for number, x in enumerate(wide):  # both are rotated before the first is concatenated
        if kept_alive is not None:
            kept_alive += [made[number], x]
        made[number] = _whole(w, made[number], x, spec)
    if spec.rotary in FLOAT32:
        return [cast(t, out, x.dtype, "rotary output") for out, x in zip(made, pair, strict=True)]
    return made


def _rotated(w: Context, x: Tensor, spec: Attention, tables: tuple[Tensor, Tensor]) -> Tensor:
    dim = min(spec.rotary_dim, int(x.shape[-1]))  # type: ignore[arg-type]
    part = x if dim == x.shape[-1] else part_of(w.t, x, (*x.shape[:-1], dim))
    return WRITTEN.get(spec.rotary, _in_order)(w, part, tables)


def _whole(w: Context, rotated: Tensor, x: Tensor, spec: Attention) -> Tensor:
    """The rotated features of `x` and those that pass through, side by side."""
    size = int(x.shape[-1])  # type: ignore[arg-type]
    dim = min(spec.rotary_dim, size)
    if dim == size and not spec.rotary_joined:
        return rotated
    rest = part_of(w.t, x, (*x.shape[:-1], size - dim))
    return concatenate(w.t, (rotated, rest), x.shape, "rotary output")


def made_tables(w: Context, spec: Attention, rows: Sized, dtype: str) -> tuple[Tensor, Tensor]:
    """cos and sin of `rows` x S positions, made once for all layers: in the hidden states' dtype or in fp32,
    D / 2 wide where halves are rotated apart.
    """
    t, dim = w.t, spec.rotary_dim
    if spec.rotary == "pairs":
        return _indexed_table(w, (rows, w.sequence, dim), dtype)
    shape = (rows, w.sequence, dim // 2 if spec.rotary == "split" else dim)
    if spec.rotary == "complex":  # as many complex64 frequencies as pairs
        both = t.once(t.alloc("rotary frequencies", shape, "float32", "complex, once for all layers"))
        return both, both
    return _computed(w, shape, dim // 2, "float32" if spec.rotary == "half_float32" else dtype)


def _computed(w: Context, shape: Shape, frequencies: int, dtype: str) -> tuple[Tensor, Tensor]:
    """cos and sin as LlamaRotaryEmbedding.forward computes them: in fp32 from the angles, scaled, then cast
    (transformers 5.24 models/llama/modeling_llama.py).
    """
    t, why = w.t, "computed once for all layers"
    places = t.alloc("rotary places", (*shape[:-1], 1), "float32", why)
    angles = t.alloc("rotary angles", (*shape[:-1], frequencies), "float32", why)
    del places
    both = angles if shape[-1] == frequencies else t.alloc("rotary angles twice", shape, "float32", why)
    made = []
    for name in ("cos", "sin"):
        plain = t.alloc(f"rotary {name} before it is scaled", shape, "float32", why)
        made.append(t.once(t.alloc(f"rotary {name}", shape, "float32", why)))
        del plain
    cos, sin = made
    del made
    tables = t.once(cast(t, cos, dtype, cos.name)), t.once(cast(t, sin, dtype, sin.name))
    del angles, both
    return tables


def _indexed_table(w: Context, shape: Shape, dtype: str) -> tuple[Tensor, Tensor]:
    """GPT-J's sines and cosines: rows of the model's one table, taken by position, cast to the hidden states'
    dtype and split into two views (transformers 5.24 models/gptj/modeling_gptj.py GPTJRotaryEmbedding).
    """
    t, half = w.t, (*shape[:-1], int(shape[-1]) // 2)  # type: ignore[arg-type]
    wide = t.alloc("sines and cosines", shape, "float32", "indexed by position, once for all layers")
    sincos = t.once(cast(t, wide, dtype, "sines and cosines"))
    return sincos.view(*half), sincos.view(*half)


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
