"""From the last hidden states to the loss of logits in parts: torchtune's, and axolotl's of whole logits.

N = B x S tokens, H hidden, V vocabulary; PARTS parts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.fused_losses import chunked_loss, fused_loss
from memplan.planner.formula.forward.losses import causal_loss, head, log_likelihood, softcapped
from memplan.planner.formula.symbolic.expr import Sized, as_expr, ceil_div, maximum, minimum, product
from memplan.planner.formula.tape.ops import Grads, add, cast, copy, part_of, unary
from memplan.planner.formula.tape.tape import Node, Shape, Tape, Tensor
from memplan.planner.tables.losses import PARTS


def torchtune(w: Context, given: Tensor) -> Tensor:
    """LinearCrossEntropyLoss: of the tokens that have a label, part by part, the head's product, its fp32
    copy and the log-softmax, which is saved (torchtune bd2a0fc7c modules/loss/cross_entropy_loss.py). All
    but the last token of each row have one.
    """
    t, whole, tokens = w.t, given.shape, w.batch * (as_expr(w.sequence) - 1)
    with t.inside("loss: "):
        held = [t.alloc("shifted labels", (w.batch, w.sequence), "int64", "the last of each row ignored")]
        places = t.alloc("places of the labels", (tokens,), "int64", "which tokens have one")
        held.append(t.alloc("labels in use", (tokens,), "int64", "those of the tokens that have one"))
        flat = t.op(
            "index_select",
            (given,),
            (tokens, whole[-1]),
            given.dtype,
            saves=(places,),
            name="hidden states with a label",
            backward=lambda t, n, g: [
                t.alloc("gradient of the last hidden states", whole, g.dtype, "zeros around those rows")
            ],
        )
        del given
        found = []
        for i in range(PARTS):
            part = part_of(t, flat, (_of_split(tokens, i), whole[-1]))
            found.append(_summed(w, _logits(w, part), held[-1]))
            del part
        return _mean(t, found)


def torchtune_06(w: Context, given: Tensor) -> Tensor:
    """CEWithChunkedOutputLoss: the logits of every part of the sequence first, alive until the loss is there
    (torchtune 0.6.1 modules/transformer.py chunked_output, modules/loss/ce_chunked_output_loss.py).
    """
    t, width = w.t, given.shape[-1]
    with t.inside("loss: "):
        labels = t.alloc("shifted labels", (w.batch, w.sequence), "int64", "the last of each row ignored")
        logits = []
        for i in range(PARTS):
            rows = _of_split(w.sequence, i)
            part = part_of(t, given, (w.batch, rows, width))
            if not w.single:
                part = copy(t, part, "rows of a part", "contiguous, for the product")
            logits.append(_logits(w, part))
            del part
        del given
        targets = [
            labels
            if w.single
            else t.alloc("labels of a part", (w.batch, _of_split(w.sequence, i)), "int64", "contiguous")
            for i in range(PARTS)
        ]
        pairs = zip(logits, targets, strict=True)
        return _mean(t, [_summed(w, part, wanted) for part, wanted in pairs])


def axolotl(w: Context, logits: Tensor) -> Tensor:
    """`chunked_cross_entropy`: of each part of the logits a compiled kernel, which saves them as they came
    and two fp32 numbers a row; its gradients are in their dtype (axolotl 0.19 monkeypatch/loss/chunked.py;
    torch 2.13 torch.compile). With several rows a part is a copy.
    """
    t, whole, dtype = w.t, logits.shape, logits.dtype
    each = ceil_div(w.sequence, PARTS)
    shapes = [
        (w.batch, minimum(maximum(as_expr(w.sequence) - each * i, 0), each), whole[-1]) for i in range(PARTS)
    ]
    made: list[Tensor] = []

    def whole_gradient(t: Tape, node: Node, grad: Tensor) -> Grads:
        found = t.alloc("gradient of the logits", whole, dtype, "the parts' gradients, concatenated")
        made.clear()
        return [found]

    with t.inside("loss: "):
        padded = t.alloc("padded labels", (w.batch, w.sequence + 1), "int64", "labels with one more place")
        labels = t.alloc("shifted labels", (w.batch, w.sequence), "int64", "labels moved by one")
        del padded
        parts = t.op("split", (logits,), whole, dtype, alias=logits, backward=whole_gradient)
        flat, wanted = [parts] * PARTS, [labels] * PARTS
        if not w.single:
            flat = [
                t.alloc("rows of a part", shape, dtype, "a contiguous copy of logits") for shape in shapes
            ]
            wanted = [t.alloc("labels of a part", shape[:-1], "int64", "contiguous") for shape in shapes]
        found = [
            _compiled(t, parts, saved, shape, made)
            for shape, *saved in zip(shapes, flat, wanted, strict=True)
        ]
        return _mean(t, found)


def _compiled(t: Tape, parts: Tensor, saved: list[Tensor], shape: Shape, made: list[Tensor]) -> Tensor:
    """One part's kernel. `made`: the gradients of all parts, which wait for the last of them; the first
    part's, which comes last, goes on to what all are parts of.
    """
    whole, dtype, row = parts.shape, parts.dtype, (product(shape[:-1]), 1)
    statistics = [
        t.alloc(name, row, "float32", "one number a row")
        for name in ("largest logit of a row", "logarithm of a row's sum")
    ]

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        sums = t.alloc("sums of rows", row, "float32", "of the kernel")
        made.append(t.alloc("gradient of a part's logits", shape, dtype, "until all are there"))
        del sums
        return [Tensor(made[-1].buffer, whole, dtype) if len(made) == PARTS else None]

    return t.op(
        "compiled cross-entropy",
        (parts,),
        (),
        "float32",
        saves=(*saved, *statistics),
        backward=backward,
        name="loss of a part",
    )


LossOf = Callable[[Context, Tensor], Tensor]
OF_LOGITS: dict[str, LossOf] = {"full": causal_loss, "axolotl-chunked": axolotl}
OF_HIDDEN_STATES: dict[str, LossOf] = {
    "chunked": chunked_loss,
    "fused": fused_loss,
    "torchtune": torchtune,
    "torchtune-0.6": torchtune_06,
}
"""Every loss of the setup, by what it is computed from."""


def _of_split(count: Sized, i: int) -> Sized:
    """The size of part i of tensor_split: the first ones have one more."""
    return ceil_div(as_expr(count) - i, PARTS)


def _logits(w: Context, part: Tensor) -> Tensor:
    return softcapped(w, head(w, part))


def _summed(w: Context, logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of a part's cross-entropies. `labels`: the tensor that its labels are a view of."""
    return log_likelihood(w, cast(w.t, logits, "float32", "fp32 logits of a part"), labels)


def _mean(t: Tape, found: list[Tensor]) -> Tensor:
    return unary(t, "scale", reduce(lambda a, b: add(t, a, b), found), "loss")
