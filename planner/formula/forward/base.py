"""The product with a base weight as it is stored: plain, 4-bit or 8-bit.

N rows (outputs), K columns (inputs). Sources: bitsandbytes 0.50 nn/modules.py, autograd/_functions.py,
backends/cuda/ops.py.
"""

from __future__ import annotations

from collections.abc import Callable

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.symbolic.expr import ceil_div
from memplan.planner.formula.tape.layers import matmul
from memplan.planner.formula.tape.ops import Grads, cast
from memplan.planner.formula.tape.tape import Node, Shape, Tape, Tensor
from memplan.planner.inputs.spec import Linear
from memplan.planner.tables.dtypes import PACKED


def base(w: Context, layer: Linear, given: Tensor, prefix: str) -> Tensor:
    """The base layer alone."""
    name = f"{prefix}{layer.name}"
    weight = w.weight(f"{name}.weight")
    bias = w.weight(f"{name}.bias") if layer.bias else None
    shape = (*given.shape[:-1], layer.out_features)
    kind = KINDS.get(weight.dtype)
    if kind is not None:
        return kind(w, layer, given, shape)
    if weight.dtype in STORED:
        return _stored(w, layer, given, shape)
    # C++ casts the last argument of an op first (GCC's order of evaluation)
    low_bias = None if bias is None else w.autocast_low(bias)
    low_weight = w.autocast_low(weight)
    return matmul(w.t, w.autocast_low(given), low_weight, shape, low_bias, "output")


def _four_bit(w: Context, layer: Linear, given: Tensor, shape: Shape) -> Tensor:
    """Linear4bit: the input in compute_dtype, N x K dequantized while it multiplies, nothing saved, N x K
    again for the gradient. Under an autocast of another dtype F.linear casts weight and input once more, and
    its output is of that dtype.
    """
    setup, t = w.setup, w.t
    multiplied = w.auto or setup.compute_dtype
    x = cast(t, given, setup.compute_dtype)
    k_shape, n = x.shape, (layer.out_features, layer.in_features)
    blocks = (ceil_div(layer.out_features * layer.in_features, setup.quant_block),)

    def dequantized(t: Tape, dtype: str, copies: int) -> list[Tensor]:
        constants = [
            t.alloc("quantization constants in fp32", blocks, "float32", "double quantization undone")
            for _ in range(copies * setup.double_quant)
        ]
        whole = t.alloc("dequantized weight", n, dtype, "the whole weight in 16 bit, for one product")
        return [whole, *constants]  # a list goes from its end on: the weight last

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        weight = dequantized(t, setup.weight_dtype, 1)[0]  # constants go with the call of dequantize_4bit
        if setup.weight_dtype != grad.dtype:
            weight = t.alloc("dequantized weight", n, grad.dtype, "cast to the gradient's dtype")
        result = t.alloc("gradient of a linear layer's input", k_shape, grad.dtype, "grad @ weight")
        del weight
        return [result]

    held = dequantized(t, setup.compute_dtype, 2)
    if multiplied != setup.compute_dtype:
        held[1:1] = [
            t.alloc(f"{what} as autocast casts it", shape, multiplied, "F.linear's operand")
            for what, shape in (("weight", n), ("input", k_shape))
        ]
    out = t.op("4-bit linear", (x,), shape, multiplied, backward=backward, name="output")
    held.clear()
    made = cast(t, out, given.dtype)
    del out  # `.to` reads it; the input's copy lasts until the module returns
    return made


def _eight_bit(w: Context, layer: Linear, given: Tensor, shape: Shape) -> Tensor:
    """Linear8bitLt: rows in int8, the input kept on the context, which checkpointing's hooks do not see, N x
    K for the gradient.
    """
    t = w.t
    x_shape, dtype = given.shape, given.dtype
    half = cast(t, given, "float16")
    quantized = [
        t.alloc("int8 input", x_shape, "int8", "rows of the input quantized"),
        t.alloc("int8 scales", x_shape[:-1], "float32", "one per row"),
    ]
    outliers = [
        t.alloc("absolute values", x_shape, "float16", "compared with the threshold of outliers"),
        t.alloc("outliers", x_shape, "bool", "which values are above it"),
    ]
    del outliers, half

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        weight = t.alloc(
            "dequantized weight",
            (layer.out_features, layer.in_features),
            dtype,
            "the whole weight, for one product",
        )
        result = t.alloc("gradient of a linear layer's input", x_shape, dtype, "grad @ weight")
        del weight
        return [result]

    product = [t.alloc("int32 product", shape, "int32", "before it is scaled")]
    if dtype != "float16":
        product.append(t.alloc("fp16 result", shape, "float16", "before it is cast"))
    out = t.op("8-bit linear", (given,), shape, dtype, backward=backward, name="output")
    if out.node is not None and given.buffer is not None:
        out.node.kept.append(given.buffer)
        given.buffer.info.saved_by = given.buffer.info.saved_by or "8-bit linear"
    del product, quantized
    return out


def _stored(w: Context, layer: Linear, given: Tensor, shape: Shape) -> Tensor:
    """A weight that its checkpoint quantized, packed in a format of its own: the output in the input's dtype,
    nothing saved, and N x K in 16 bit for the gradient (transformers 5.24 integrations/finegrained_fp8.py
    FP8LinearFunction). What kernels of the forward allocate is not counted, and said so.
    """
    t = w.t
    x = w.autocast_low(given)
    x_shape, n = x.shape, (layer.out_features, layer.in_features)

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        weight = t.alloc("dequantized weight", n, grad.dtype, "the whole weight, for one product")
        result = t.alloc("gradient of a linear layer's input", x_shape, grad.dtype, "grad @ weight")
        del weight
        return [result]

    return t.op("quantized linear", (x,), shape, x.dtype, backward=backward, name="output")


STORED = (*PACKED.values(), "float8_e4m3fn")
"""Dtypes of weights that a checkpoint quantized."""
KINDS: dict[str, Callable[[Context, Linear, Tensor, Shape], Tensor]] = {
    "nf4": _four_bit,
    "fp4": _four_bit,
    "int8": _eight_bit,
}
