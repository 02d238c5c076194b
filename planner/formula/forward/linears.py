"""A linear layer as a method leaves it: its base alone, or with an adapter beside it.

N rows (outputs), K columns (inputs). Sources: peft 0.21 tuners/lora/{layer,bnb,dora,variants}.py,
tuners/adalora/{layer,bnb}.py, tuners/ia3/layer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from memplan.planner.formula.forward.base import KINDS, STORED, base
from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.resident.adapters import Adapter
from memplan.planner.formula.symbolic.expr import Sized, ceil_div, product
from memplan.planner.formula.tape.layers import bmm, matmul
from memplan.planner.formula.tape.ops import Grads, add, add_in_place, cast, copy, divide, dropout, mul, unary
from memplan.planner.formula.tape.tape import Node, Tape, Tensor
from memplan.planner.inputs.spec import Linear
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.peft_targets import ia3_feedforward
from memplan.planner.tables.tasks import TASKS


def linear(w: Context, layer: Linear, given: Tensor, prefix: str = "") -> Tensor:
    """The layer's output for an input (..., K): (..., N). `prefix` is the path of the decoder layers, empty
    outside them.
    """
    leaf = layer.name.rpartition(".")[2]
    with w.t.inside(f"{prefix}{leaf} "):
        adapter = w.parameter_table.adapters.get(layer.name)
        if adapter is None:
            return base(w, layer, given, prefix)
        return WITH_ADAPTER[adapter.kind](w, layer, adapter, given, prefix)


def _parts(w: Context, layer: Linear, prefix: str, *short: str) -> list[Tensor]:
    return [w.weight(f"{prefix}{layer.name}.{s}") for s in short]


def _quantized(w: Context, layer: Linear, prefix: str) -> bool:
    """Whether this layer's base is quantized: peft then takes its bitsandbytes class."""
    return w.weight(f"{prefix}{layer.name}.weight").dtype in KINDS


def _four(w: Context, layer: Linear, prefix: str) -> bool:
    return w.weight(f"{prefix}{layer.name}.weight").dtype in ("nf4", "fp4")


def _adapter_input(w: Context, layer: Linear, prefix: str, given: Tensor, dtype: str) -> Tensor:
    """PEFT casts the input to the adapter's dtype, but not on a quantized base under autocast (lora/layer.py,
    lora/bnb.py).
    """
    if _quantized(w, layer, prefix) and w.auto is not None:
        return given
    return cast(w.t, given, dtype, f"{dtype} copy of the adapter's input")


def _product(w: Context, x: Tensor, weight: Tensor, features: object, name: str) -> Tensor:
    x = w.around.enter_adapter(weight, x)
    low_weight = w.autocast_low(weight)  # C++ casts the last argument first
    out = matmul(w.t, w.autocast_low(x), low_weight, (*x.shape[:-1], features), None, name)  # type: ignore[arg-type]
    return w.around.leave_adapter(weight, out)


def _low_rank(w: Context, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """lora_B(lora_A(x)): an x that nobody else names goes before lora_B is asked."""
    low = _product(w, x, a, a.shape[0], "lora_A output")
    del x
    return _product(w, low, b, b.shape[0], "lora_B output")


def _dropped(w: Context, x: Tensor) -> Tensor:
    return dropout(w.t, x, float(w.setup.dropout) if TASKS[w.setup.task].dropout else 0.0)


def _lora(w: Context, layer: Linear, adapter: Adapter, given: Tensor, prefix: str) -> Tensor:
    """LoRA: result + lora_B(lora_A(dropout(x))) * scaling; a 4-bit base's result is cloned first."""
    t = w.t
    a, b = _parts(w, layer, prefix, "lora_A", "lora_B")
    result = base(w, layer, given, prefix)
    dtype = result.dtype
    if _four(w, layer, prefix):
        result = copy(t, result, "clone", "peft clones a 4-bit layer's result")
    x = _adapter_input(w, layer, prefix, given, w.around.told(a))
    if not _quantized(w, layer, prefix):
        result = add(
            t, result, unary(t, "scale", _low_rank(w, _dropped(w, x), a, b), "scaled"), "with adapter"
        )
        return cast(t, result, dtype)
    output = unary(t, "scale", _low_rank(w, _dropped(w, x), a, b), "scaled")
    if w.auto is None:
        output = cast(t, output, dtype)
    return add(t, result, output, "with adapter")


def _adalora(w: Context, layer: Linear, adapter: Adapter, given: Tensor, prefix: str) -> Tensor:
    """AdaLoRA: result += (dropout(x) @ (lora_A * lora_E).T @ lora_B.T) * scaling / ranknum.

    peft 0.21 leaves `ranknum` trained, so the division saves the adapter's whole output for its gradient.
    """
    t = w.t
    a, e, b, ranknum = _parts(w, layer, prefix, "lora_A", "lora_E", "lora_B", "ranknum")
    ranknum = unary(t, "shift", ranknum, "ranknum + 1e-5")
    result = base(w, layer, given, prefix)
    dtype = result.dtype
    if _four(w, layer, prefix):
        result = copy(t, result, "clone", "peft clones a 4-bit layer's result")
    x = _adapter_input(w, layer, prefix, given, a.dtype)

    def product() -> Tensor:
        scaled = mul(t, a, e, "lora_A * lora_E")
        low = _product(w, _dropped(w, x), scaled, a.shape[0], "lora_A output")
        del scaled
        return _product(w, low, b.view(*b.shape), b.shape[0], "lora_B output")

    if _quantized(w, layer, prefix):
        output = product()
        if w.auto is None:
            output = cast(t, output, dtype)
        output = divide(t, unary(t, "scale", output, "scaled"), ranknum, "divided by ranknum")
    else:
        output = divide(t, unary(t, "scale", product(), "scaled"), ranknum, "divided by ranknum")
    return add_in_place(t, result, output)


def merged(w: Context, name: str, prefix: str) -> Tensor:
    """An expert or router parameter, with its adapter folded in where it has one: a whole second weight in
    every call.

    peft 0.21 tuners/lora/layer.py ParamWrapper: baddbmm(W, B, A) for experts, W + B A for the router.
    """
    t = w.t
    weight = w.weight(f"{prefix}{name}")
    adapter = w.parameter_table.adapters.get(name)
    if weight.dtype in ("nf4", "fp4"):
        weight = _dequantized(w, weight)
    if adapter is None:
        return weight
    if weight.dtype in STORED:
        raise UsageError(
            f"'{name}' is stored quantized by the checkpoint: PEFT cannot fold an adapter into it"
        )
    with t.inside(f"{name.rpartition('.')[2]} "):
        a, b = (w.weight(f"{prefix}{name}.{short}") for short in ("lora_A", "lora_B"))
        if adapter.experts == 1:
            delta = matmul(t, w.autocast_low(b), w.autocast_low(a), weight.shape, None, "B A")
            delta = cast(t, unary(t, "scale", delta, "scaled B A"), weight.dtype)
            return add(t, weight, delta, "weight with adapter", weight.shape)
        low = [cast(t, x, weight.dtype, "16-bit copy of the adapter") for x in (b, a)]
        shapes = [x.shape for x in low]

        def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
            made: list[Tensor | None] = [None]
            made += [
                t.alloc("gradient of a folded adapter", shape, grad.dtype, "grad @ the other factor")
                for shape in shapes
            ]
            return made

        return t.op(
            "baddbmm",
            (weight, *low),
            weight.shape,
            weight.dtype,
            saves=low[::-1],
            backward=backward,
            name="weight with adapter",
            why="peft folds the adapter into a copy of all experts' weights",
        )


def _dequantized(w: Context, weight: Tensor) -> Tensor:
    """A quantized parameter of all experts as their forward reads it: the whole of it in the dtype that it
    was loaded in, kept until that forward ends (bitsandbytes 0.50 nn/parametrize.py
    Bnb4bitParametrization, _enable_parametrization_cache; functional.py dequantize_4bit).
    """
    blocks = (ceil_div(product(weight.shape), w.setup.quant_block),)
    constants = [
        w.t.alloc("quantization constants in fp32", blocks, "float32", "double quantization undone")
        for _ in range(w.setup.double_quant)
    ]
    made = w.t.alloc(
        "dequantized experts",
        weight.shape,
        w.setup.weight_dtype,
        "the weights of all experts, until their forward ends",
    )
    del constants
    return made


def orthogonality(w: Context, layers: Iterable[Linear], prefix: str = "") -> Tensor | None:
    """AdaLoRA's regularization of the adapters on `layers`: norm(P P^T - I) of each lora_A and lora_B (peft
    0.21 tuners/adalora/model.py forward); None where none of them has one.
    """
    loss: Tensor | None = None
    for layer in layers:
        adapter = w.parameter_table.adapters.get(layer.name)
        if adapter is None:
            continue
        for short in ("lora_A", "lora_B"):
            size = _distance(w, w.weight(f"{prefix}{layer.name}.{short}"), adapter.tensor("lora_A").shape[0])
            loss = size if loss is None else add(w.t, loss, size, "regularization")
    return loss


def _distance(w: Context, p: Tensor, rank: Sized) -> Tensor:
    """norm(P P^T - I), R x R."""
    t, square = w.t, (rank, rank)
    gram = bmm(
        t, w.autocast_low(p), w.autocast_low(p.view(*p.shape)), square, "P P^T"
    )  # of a view such as the transpose autocast caches no copy
    identity = t.alloc("identity", square, gram.dtype, "what P P^T should be")
    less = add(t, gram, identity, "P P^T - I")
    del gram, identity

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [t.alloc("gradient of norm's input", square, "float32", "grad * input / norm")]

    return t.op(
        "norm", (w.autocast_fp32(less),), (), "float32", saves=(less,), name="norm", backward=backward
    )


def _dora(w: Context, layer: Linear, adapter: Adapter, given: Tensor, prefix: str) -> Tensor:
    """DoRA: the norm of weight + B A per output row, and the result scaled by magnitude / norm; whole N x K
    weights are made for it.
    """
    t = w.t
    a, b, m = _parts(w, layer, prefix, "lora_A", "lora_B", "lora_magnitude_vector")
    result = base(w, layer, given, prefix)
    dtype = result.dtype
    if _four(w, layer, prefix):
        result = copy(t, result, "clone", "peft clones a 4-bit layer's result")
    wide = _adapter_input(w, layer, prefix, given, a.dtype)
    x = _dropped(w, wide)
    n, k = layer.out_features, layer.in_features
    identity = t.alloc("identity", (k, k), a.dtype, "DoRA multiplies the adapter out")
    low_rank_of_identity = _product(w, identity, a, a.shape[0], "lora_A of identity")
    delta = _product(
        w, low_rank_of_identity, b, n, "B A"
    )  # lives to the end of the call, with what its graph saved
    del identity, low_rank_of_identity
    delta = cast(t, delta, x.dtype)
    weight = w.weight(f"{prefix}{layer.name}.weight")
    dense = weight
    if weight.dtype == "int8":
        product = t.alloc("int8 weight times its scales", (n, k), "float32", "before the factor of 1 / 127")
        dense = t.alloc("dequantized weight", (n, k), "float32", "the whole weight")
        del product
    elif weight.dtype in KINDS:
        dense = t.alloc("dequantized weight", (n, k), w.setup.weight_dtype, "the whole weight")
    dense = cast(t, dense.detach(), x.dtype, "weight in the adapter's dtype")
    scale = _magnitude_scale(w, m, dense, delta)
    low_rank = _low_rank(w, x, a, b)
    if w.setup.dropout:
        plain = matmul(
            t, w.autocast_low(x), w.autocast_low(dense), result.shape, None, "base of the dropped input"
        )
    elif layer.bias:  # peft takes the bias off, so that the magnitude does not scale it
        plain = t.op(
            "sub",
            (result,),
            result.shape,
            result.dtype,
            name="base without bias",
            backward=lambda t, n, g: [Tensor(g.buffer, g.shape, g.dtype)],
        )
    else:
        plain = result
    left = mul(t, plain, unary(t, "shift", scale, "scale - 1"), "scaled base")
    right = unary(t, "scale", mul(t, low_rank, scale, "scaled adapter"), "scaled adapter")
    extra = add(t, left, right, "DoRA output")
    del left, right, low_rank, delta, dense, scale, plain
    made = add(t, result, extra, "with adapter")
    del extra, x  # of the variant's call; the layer's own names go after it
    result = made
    del made
    return cast(t, result, dtype)


def _magnitude_scale(w: Context, m: Tensor, dense: Tensor, delta: Tensor) -> Tensor:
    """magnitude / norm(weight + scaling B A), one per output row; the norm is a constant of the graph."""
    t, n = w.t, dense.shape[0]
    with t.no_grad():
        summed = add(t, dense, unary(t, "scale", delta, "scaled B A"), "weight + B A", dense.shape)
        norm = t.alloc("norm of the rows", (n,), summed.dtype, "one per output")
        del summed

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [t.alloc("magnitude gradient", (n,), grad.dtype, "grad / norm")]

    return t.op("divide", (m,), (n,), "float32", saves=(m, norm), name="magnitude / norm", backward=backward)


def _ia3(w: Context, layer: Linear, adapter: Adapter, given: Tensor, prefix: str) -> Tensor:
    """IA3: the output times a vector; a feed-forward layer's input instead."""
    t = w.t
    (vector,) = _parts(w, layer, prefix, "ia3_l")
    if layer.name.endswith(ia3_feedforward(w.parameter_table.spec.model_type)):
        wide = cast(t, given, vector.dtype, "input in the vector's dtype")
        scaled = cast(t, mul(t, wide, vector, "scaled input"), given.dtype)
        return base(w, layer, scaled, prefix)
    result = base(w, layer, given, prefix)
    dtype = result.dtype
    return cast(t, mul(t, result, vector, "scaled output"), dtype)


def bottleneck(w: Context, part: str, x: Tensor, prefix: str) -> Tensor:
    """x + up(gelu(down(x))) after the attention or the MLP, where the method is `adapter`; else x."""
    adapter = w.parameter_table.adapters.get(part)
    if adapter is None:
        return x
    t = w.t
    with t.inside(f"{prefix}{part} bottleneck "):
        down, down_bias, up, up_bias = (w.weight(tensor.name) for tensor in adapter.tensors)
        narrow = cast(t, x, down.dtype, "input of the bottleneck")
        shape = (*x.shape[:-1], down.shape[0])
        narrow = matmul(
            t, w.autocast_low(narrow), w.autocast_low(down), shape, w.autocast_low(down_bias), "down output"
        )
        narrow = unary(t, "gelu", narrow, "gelu output")
        wide = cast(
            t,
            matmul(
                t, w.autocast_low(narrow), w.autocast_low(up), x.shape, w.autocast_low(up_bias), "up output"
            ),
            x.dtype,
        )
        del narrow
        return add(t, x, wide, "with bottleneck")


WITH_ADAPTER: dict[str, Callable[[Context, Linear, Adapter, Tensor, str], Tensor]] = {
    "lora": _lora,
    "dora": _dora,
    "adalora": _adalora,
    "ia3": _ia3,
}
