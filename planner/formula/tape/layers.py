"""What torch's layers save and make, as `ops.py` has it for elementwise operations: products, layer_norm,
embedding, softmax.
"""

from __future__ import annotations

from memplan.planner.formula.symbolic.expr import ceil_div, exceeds, maximum, minimum, product
from memplan.planner.formula.tape.ops import Grads, _alias, cast
from memplan.planner.formula.tape.tape import Node, Shape, Tape, Tensor


def matmul(
    t: Tape, x: Tensor, weight: Tensor, shape: Shape, bias: Tensor | None = None, name: str = ""
) -> Tensor:
    """x @ weight^T (+ bias): saves x where the weight is trained, the weight where x wants a gradient.

    Gradients come in the alphabetical order of an op's arguments (torch 2.13 tools/autograd/
    load_derivatives.py, over derivatives.yaml): mm has mat2 and self, the weight first; addmm, which a bias
    makes of it (ATen/native/Linear.cpp), mat1 and mat2, the input first.
    """

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        grads: list[Tensor | None] = [None, None, None]
        for argument in (0, 1) if bias is not None else (1, 0):
            if not node.needs(argument):
                continue
            if argument:
                made = t.alloc("gradient of the weight", w_shape, grad.dtype, "grad^T @ input")
                made.viewed = True  # transposed back
            else:
                made = t.alloc("gradient of a linear layer's input", x_shape, grad.dtype, "grad @ weight")
                made.viewed = len(x_shape) > 2  # a matrix product, seen in the input's shape
            grads[argument] = made
            del made
        if len(node.edges) > 2 and node.needs(2):
            grads[2] = _alias(grad)
        return grads[: len(node.edges)]

    x_shape, w_shape = x.shape, weight.shape
    saves = ([x] if weight.requires_grad else []) + ([weight] if x.requires_grad else [])
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return t.op("linear", inputs, shape, x.dtype, saves=saves, backward=backward, name=name)


def bmm(t: Tape, a: Tensor, b: Tensor, shape: Shape, name: str = "") -> Tensor:
    """A batched product of two activations: saves both. The second's gradient comes first, as of mm."""

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        grads: list[Tensor | None] = [None, None]
        for i in (1, 0):
            if node.needs(i):
                grads[i] = t.alloc(
                    "gradient of a matmul's input", shapes[i], grad.dtype, "grad @ the other factor"
                )
        return grads

    shapes = (a.shape, b.shape)
    saves = ([a] if b.requires_grad else []) + ([b] if a.requires_grad else [])
    return t.op("bmm", (a, b), shape, a.dtype, saves=saves, backward=backward, name=name)


def layer_norm(t: Tape, x: Tensor, weight: Tensor | None, bias: Tensor | None, name: str = "") -> Tensor:
    """The fused layer norm: makes its output, saves its input, and mean and 1 / deviation per token in fp32
    (ATen/native/cuda/layer_norm_kernel.cu layer_norm_cuda).
    """
    rows, shape = x.shape[:-1], x.shape
    made = t.alloc(name or "layer_norm output", shape, x.dtype, "made by layer_norm")
    mean_, rstd = (t.alloc(f"layer norm {what}", rows, "float32", "per token") for what in ("mean", "rstd"))
    given = [p for p in (weight, bias) if p is not None]

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        grads: list[Tensor | None] = (
            [t.alloc("gradient of layer norm's input", shape, grad.dtype, "fused kernel")]
            if node.needs(0)
            else [None]
        )
        for i, p in enumerate(names, 1):
            grads.append(t.alloc(f"{p[0]} gradient", p[1], p[2], "fused kernel") if node.needs(i) else None)
        return grads

    names = [(p.name, p.shape, p.dtype) for p in given]
    return t.op(
        "layer_norm",
        (x, *given),
        shape,
        x.dtype,
        saves=(x, mean_, rstd, *given),
        backward=backward,
        alias=made,
    )


def embedding(t: Tape, ids: Tensor, weight: Tensor, shape: Shape, name: str, device: str = "cuda") -> Tensor:
    """Rows of a table: saves the ids; the gradient is a whole dense table (embedding_dense_backward).

    Beyond 3,072 ids CUDA sums ten rows at most of equal ids in fp32 first
    (ATen/native/cuda/EmbeddingBackwardKernel.cu).
    """
    w_shape, w_name, i_shape = weight.shape, weight.name, ids.shape
    count = product(i_shape)
    partial = exceeds(count, 3072) * (ceil_div(maximum(count, 9) - 9, 10) + minimum(count, w_shape[0]))

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        order = [
            t.alloc("sorted ids", i_shape, "int64", "sorting the ids before the scatter") for _ in range(2)
        ]
        table = t.alloc(f"{w_name} gradient", w_shape, grad.dtype, "a dense table: every row, used or not")
        if device == "cuda":
            order.append(
                t.alloc(
                    "partial sums of the table's gradient",
                    (partial, shape[-1]),
                    "float32",
                    "ten rows of equal ids each",
                )
            )
        del order
        return [table]

    return t.op("embedding", (weight,), shape, weight.dtype, saves=(ids,), backward=backward, name=name)


def softmax_fp32(t: Tape, x: Tensor, device: str = "cuda") -> Tensor:
    """softmax(x, dtype=float32): saves its fp32 output.

    For a float16 input CUDA fuses the cast (half_to_float, ATen/native/SoftMax.cpp); bfloat16 is first cast
    to an fp32 tensor. The backward makes grad * output in full (ATen/native/cuda/SoftMax.cu,
    softmax_backward_cuda_out: `grad * output`).
    """
    source = x.dtype
    fused = source == "float16" and device == "cuda"

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        product = t.alloc(
            "grad * softmax", grad.shape, grad.dtype, "a full-size temporary of the softmax gradient"
        )
        result = t.alloc(
            "gradient of softmax's input", grad.shape, source if fused else grad.dtype, "the scores' gradient"
        )
        del product
        return [result]

    wide = x if fused else cast(t, x, "float32", "fp32 scores")
    return t.op(
        "softmax",
        (wide,),
        x.shape,
        "float32",
        saves_output=True,
        backward=backward,
        name="attention probabilities",
    )
