"""What each operation saves for its backward pass, what it makes, and what it needs while it runs (torch
2.13).

Saved tensors and gradient formulas: tools/autograd/derivatives.yaml and csrc/autograd/FunctionsManual.cpp.
C++ temporaries live to the end of the full expression, which is why a formula such as pow's holds three
tensors at once. Gradients are made in the dtype that the formula gives; the engine then sums them over
broadcast dimensions and casts them to the input's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from memplan.planner.formula.tape.tape import Node, Shape, Tape, Tensor

Grads = Sequence[Tensor | None]


def promote(a: str, b: str) -> str:
    """The dtype of an operation on two floating dtypes: the wider one, float32 for the two 16-bit ones
    together.
    """
    if a == b:
        return a
    return "float32"


def _alias(tensor: Tensor) -> Tensor:
    return Tensor(tensor.buffer, tensor.shape, tensor.dtype)


# ---- elementwise -------------------------------------------------------------------------------------------

# kind: (what its gradient reads, how many extra tensors of the output's size the gradient formula holds
# beside the result)
UNARY: dict[str, tuple[str, int]] = {
    "silu": ("input", 0),
    "gelu": ("input", 0),
    "relu": ("output", 0),
    "tanh": ("output", 0),
    "sigmoid": ("output", 0),
    "rsqrt": ("output", 2),  # -0.5 * grad * result^3
    "pow": ("input", 2),  # grad * (exponent * self^(exponent - 1))
    # multiplication by a number: no checkpoint's hook sees that it is saved (torch 2.13
    # csrc/autograd/saved_variable.cpp: is_wrapped_number), and it has no device bytes
    "scale": ("nothing", 0),
    "neg": ("nothing", 0),
    "shift": ("alias", 0),  # addition of a number
    "clamp": ("input", 1),  # where(mask, grad, 0)
}


def unary(t: Tape, kind: str, x: Tensor, name: str = "") -> Tensor:
    """An elementwise operation of one tensor."""
    reads, extra = UNARY[kind]

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        if reads == "alias":
            return [_alias(grad)]
        held = [
            t.alloc(f"{kind} gradient formula", grad.shape, grad.dtype, "a factor of the gradient formula")
            for _ in range(extra)
        ]
        result = t.alloc(f"gradient of {kind}'s input", grad.shape, grad.dtype, "grad times the derivative")
        del held
        return [result]

    saves = (x,) if reads == "input" else ()
    return t.op(
        kind,
        (x,),
        x.shape,
        x.dtype,
        saves=saves,
        saves_output=reads == "output",
        backward=backward,
        name=name,
    )


def add(t: Tape, a: Tensor, b: Tensor, name: str = "", shape: Shape | None = None) -> Tensor:
    """a + b: saves nothing; both gradients are the incoming one."""
    return t.op(
        "add",
        (a, b),
        shape or a.shape,
        promote(a.dtype, b.dtype),
        backward=lambda t, n, g: [_alias(g), _alias(g)],
        name=name,
    )


def add_in_place(t: Tape, a: Tensor, b: Tensor) -> Tensor:
    """a += b: the bytes of a stay."""
    return t.op("add_", (a, b), a.shape, a.dtype, backward=lambda t, n, g: [_alias(g), _alias(g)], alias=a)


def mul(
    t: Tape, a: Tensor, b: Tensor, name: str = "", shape: Shape | None = None, dtype: str | None = None
) -> Tensor:
    """a * b: saves each factor that the other's gradient reads."""

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        wide = [promote(grad.dtype, b_dtype), promote(grad.dtype, a_dtype)]
        return [
            t.alloc("gradient of a factor", grad.shape, wide[i], "grad times the other factor")
            if node.needs(i)
            else None
            for i in (0, 1)
        ]

    a_dtype, b_dtype = a.dtype, b.dtype
    saves = ([a] if b.requires_grad else []) + ([b] if a.requires_grad else [])
    return t.op(
        "mul",
        (a, b),
        shape or a.shape,
        dtype or promote(a.dtype, b.dtype),
        saves=saves,
        backward=backward,
        name=name,
    )


def divide(t: Tape, a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """a / b: saves the divisor, and the dividend where the divisor is trained, whose gradient -grad * ((a /
    b) / b) holds four tensors.
    """

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        grads: list[Tensor | None] = [None, None]
        if node.needs(1):  # the divisor's comes first
            held = [
                t.alloc(
                    "divisor gradient formula", grad.shape, grad.dtype, "a factor of -grad * ((a / b) / b)"
                )
                for _ in range(3)
            ]
            grads[1] = t.alloc("gradient of the divisor", grad.shape, grad.dtype, "before it is summed")
            del held
        if node.needs(0):
            grads[0] = t.alloc("gradient of the dividend", grad.shape, grad.dtype, "grad / divisor")
        return grads

    saves = ([b] if a.requires_grad or b.requires_grad else []) + ([a] if b.requires_grad else [])
    return t.op(
        "divide", (a, b), a.shape, promote(a.dtype, b.dtype), saves=saves, backward=backward, name=name
    )


def cast(t: Tape, x: Tensor, dtype: str, name: str = "") -> Tensor:
    """x.to(dtype): nothing happens where the dtype is right, else a copy; saves nothing."""
    if x.dtype == dtype:
        return x
    source = x.dtype
    return t.op(
        "cast",
        (x,),
        x.shape,
        dtype,
        name=name or f"{dtype} copy",
        why=f"a {dtype} copy of a {source} tensor",
        backward=lambda t, n, g: [t.alloc(f"{source} gradient", g.shape, source, "the gradient cast back")],
    )


def copy(t: Tape, x: Tensor, name: str, why: str = "", shape: Shape | None = None) -> Tensor:
    """A contiguous copy (clone, contiguous, reshape of a transposed tensor): saves nothing; its gradient is a
    view of the incoming one.
    """
    return t.op(
        "copy", (x,), shape or x.shape, x.dtype, name=name, why=why, backward=lambda t, n, g: [_alias(g)]
    )


def mean(t: Tape, x: Tensor) -> Tensor:
    """The mean over the last dimension, kept: saves nothing; its gradient is expanded and divided."""
    shape = x.shape
    return t.op(
        "mean",
        (x,),
        (*shape[:-1], 1),
        x.dtype,
        backward=lambda t, n, g: [
            t.alloc("gradient of mean's input", shape, g.dtype, "expanded and divided by the count")
        ],
    )


def dropout(t: Tape, x: Tensor, p: float) -> Tensor:
    """Dropout: CUDA's fused one saves a boolean mask, the CPU noise of the input's dtype; nothing for p = 0
    or while not training.

    ATen/native/Dropout.cpp.
    """
    if p == 0 or not t.training:
        return x
    mask = t.alloc(
        "dropout mask", x.shape, "bool" if t.fused_dropout else x.dtype, "which elements were dropped"
    )
    return t.op(
        "dropout",
        (x,),
        x.shape,
        x.dtype,
        saves=(mask,),
        backward=lambda t, n, g: [
            t.alloc("gradient of dropout's input", g.shape, g.dtype, "grad times the mask")
        ],
    )


def concatenate(t: Tape, parts: Sequence[Tensor], shape: Shape, name: str = "") -> Tensor:
    """cat: the widest dtype of its parts; saves nothing; the gradients are views of the incoming one."""
    shapes = [part.shape for part in parts]
    return t.op(
        "cat",
        tuple(parts),
        shape,
        reduce(promote, (part.dtype for part in parts)),
        name=name or "cat output",
        backward=lambda t, n, g: [Tensor(g.buffer, s, g.dtype) for s in shapes],
    )


def part_of(t: Tape, x: Tensor, shape: Shape) -> Tensor:
    """A slice: no bytes; its gradient is written into zeros of the whole shape."""
    whole = x.shape
    return t.op(
        "slice",
        (x,),
        shape,
        x.dtype,
        alias=x,
        backward=lambda t, n, g: [
            t.alloc(
                "gradient of a sliced tensor",
                whole,
                g.dtype,
                "zeros of the whole shape around the slice's gradient",
            )
        ],
    )


def split(t: Tape, x: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """chunk / split / unbind: views. The gradients meet in one tensor of the whole shape, made when the last
    of them arrives.

    The pieces are one node with several outputs in torch; here each piece has a node, and a common node below
    makes the whole.
    """
    whole = x.shape
    common = t.op(
        "split",
        (x,),
        whole,
        x.dtype,
        alias=x,
        backward=lambda t, n, g: [
            t.alloc("gradient of a split tensor", whole, g.dtype, "the pieces' gradients, concatenated")
        ],
    )
    return [
        t.op(
            "piece",
            (common,),
            shape,
            x.dtype,
            alias=x,
            backward=lambda t, n, g: [Tensor(g.buffer, whole, g.dtype)],
        )
        for shape in shapes
    ]


# ---- matrix products ---------------------------------------------------------------------------------------


# ---- norms, embeddings, softmax ----------------------------------------------------------------------------
