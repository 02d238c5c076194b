"""Norms op by op, as transformers 5.23 writes them: what each saves follows from its ops."""

from __future__ import annotations

from collections.abc import Callable

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.tape.layers import layer_norm
from memplan.planner.formula.tape.ops import add, cast, mean, mul, unary
from memplan.planner.formula.tape.tape import Tensor
from memplan.planner.inputs.spec import Norm


def norm(w: Context, spec: Norm, given: Tensor, prefix: str = "", by_head: bool = False) -> Tensor:
    """The normalized input, in the input's dtype (in fp32 where autocast runs layer_norm). `by_head`: it is
    seen head by head and lies token by token.
    """
    weight = w.weight(f"{prefix}{spec.name}.weight") if spec.weight else None
    bias = w.weight(f"{prefix}{spec.name}.bias") if spec.bias else None
    with w.t.inside(f"{prefix}{spec.name.rpartition('.')[2]} "):
        if "rms_norm" in w.kernels and spec.kind == "rms" and weight is not None:
            from memplan.planner.formula.tape.fused_kernels import rms_norm
            from memplan.planner.tables.fused_kernels import LIGER, multiprocessors

            row, rows = LIGER[w.parameter_table.spec.model_type], multiprocessors(w.setup.gpu)
            return rms_norm(w.t, given, weight, row.in_place, rows, by_head, by_head and "rope" in w.kernels)
        return STYLES[spec.kind, spec.style](w, given, weight, bias)


def _normalized(w: Context, x: Tensor) -> Tensor:
    """x * rsqrt(mean(x^2) + eps) of an fp32 x."""
    t = w.t
    variance = mean(t, unary(t, "pow", x, "squares"))
    return mul(
        t, x, unary(t, "rsqrt", unary(t, "shift", variance, "variance"), "1 / deviation"), "normalized"
    )


def _rms(w: Context, given: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Llama: weight * (normalized fp32, cast back)."""
    x = cast(w.t, given, "float32")
    x = _normalized(w, x)  # keeps its name until the output is made
    low = cast(w.t, x, given.dtype)
    if weight is None:
        return low
    output = mul(w.t, low, weight, "output")
    del low  # it has no name, x has
    return output


def _gemma(w: Context, given: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Gemma: normalized fp32 * (1 + weight in fp32), cast back last."""
    output = _normalized(w, cast(w.t, given, "float32"))
    if weight is not None:
        output = mul(w.t, output, unary(w.t, "shift", cast(w.t, weight, "float32"), "1 + weight"), "scaled")
    return cast(w.t, output, given.dtype, "output")


def _late_cast(w: Context, given: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """OLMo 2, gpt-oss: weight * normalized fp32, cast back last."""
    x = cast(w.t, given, "float32")
    x = _normalized(w, x)
    scaled = x if weight is None else mul(w.t, x, weight, "scaled")
    return cast(w.t, scaled, given.dtype, "output")


def _manual(w: Context, given: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Cohere: a LayerNorm spelled out in fp32."""
    t = w.t
    x = cast(t, given, "float32")
    center = mean(t, x)
    centerd = add(t, x, center, "centerd")
    variance = mean(t, unary(t, "pow", centerd, "squares"))
    del centerd
    x = mul(
        t,
        add(t, x, center, "centerd"),
        unary(t, "rsqrt", unary(t, "shift", variance, "variance"), "1 / deviation"),
        "normalized",
    )
    if weight is not None:
        x = mul(t, x, cast(t, weight, "float32"), "scaled")
    return cast(t, x, given.dtype, "output")


def _layer(w: Context, given: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """torch's fused LayerNorm; autocast runs it in fp32, with fp32 copies of 16-bit input, weight and bias,
    and leaves the output fp32.
    """
    wide = [None if p is None else w.autocast_fp32(p) for p in (weight, bias)]
    return layer_norm(w.t, w.autocast_fp32(given), wide[0], wide[1], "output")


def _layer_float32(w: Context, given: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """OLMo 1: the fused LayerNorm on an fp32 copy, cast back."""
    return cast(
        w.t, layer_norm(w.t, cast(w.t, given, "float32"), weight, bias, "fp32 output"), given.dtype, "output"
    )


STYLES: dict[tuple[str, str], Callable[[Context, Tensor, Tensor | None, Tensor | None], Tensor]] = {
    ("rms", "plain"): _rms,
    ("rms", "gemma"): _gemma,
    ("rms", "late_cast"): _late_cast,
    ("layer", "manual"): _manual,
    ("layer", "plain"): _layer,
    ("layer", "float32"): _layer_float32,
}
