"""A token's log-probability of whole logits as TRL takes it: one row after another up to 1.13, since by one
Triton kernel.

N rows, T tokens, V vocabulary. Sources: trl 1.9 trainer/utils.py selective_log_softmax; trl 1.14 kernels/
logprob_entropy.py.
"""

from __future__ import annotations

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.symbolic.expr import Sized, ceil_div
from memplan.planner.formula.tape.ops import Grads, concatenate, split
from memplan.planner.formula.tape.tape import Node, Tape, Tensor
from memplan.planner.tables.tasks import KERNEL_SINCE

HALVES = ("chosen", "rejected")
"""The rows of a batch. What is made row by row is two blocks here, which one pair's are."""


def selected(w: Context, given: Tensor, *saved: Tensor) -> Tensor:
    """The labels' log-probabilities (N, T) of logits (N, T, V), as the setup's release of TRL takes them.
    `saved`: what is saved beside the logits.
    """
    if w.setup.trl >= KERNEL_SINCE:
        return _by_kernel(w, given, saved)
    return (_of_sums if given.dtype == "float32" else _of_softmax)(w, given)


def summed(w: Context, each: Tensor) -> Tensor:
    """(N,) sums of (N, T) that are masked already; their gradient is expanded and made contiguous."""
    tokens = each.shape
    return w.t.op(
        "sum",
        (each,),
        (w.batch,),
        "float32",
        name="log-probabilities of rows",
        backward=lambda t, n, g: [t.alloc("gradient of log-probabilities", tokens, "float32", "expanded")],
    )


def _half(w: Context, given: Tensor) -> tuple[Sized, ...]:
    return (ceil_div(w.batch, 2), *given.shape[1:])


def _of_sums(w: Context, given: Tensor) -> Tensor:
    """The labels' logits less the log-sum-exp of their row's, which saves them."""
    t, whole, half, dtype = w.t, given.shape, _half(w, given), given.dtype
    row = whole[1:]
    made = t.alloc("one row of the logits", row, dtype, "less its largest, then exp in place")
    del made

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        rows = []
        for which in HALVES:
            formula = [t.alloc(name, row, dtype, "of one row") for name in ("difference", "exp")]
            rows.append(t.alloc(f"gradients of {which} rows", half, dtype, "until all are there"))
            del formula
        found = t.alloc("gradient of the scored logits", whole, dtype, "the rows' gradients, stacked")
        del rows
        zeros = t.alloc("gradient of the selected logits", whole, dtype, "zeros but for labels")
        del zeros
        return [found]

    return t.op(
        "log-probabilities",
        (given,),
        whole[:-1],
        dtype,
        saves=(given,),
        backward=backward,
        name="log-probabilities",
    )


def _of_softmax(w: Context, given: Tensor) -> Tensor:
    """The labels' entries of each row's log-softmax, which is saved until its own backward."""
    t, whole, half, dtype = w.t, given.shape, _half(w, given), given.dtype

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        zeros = t.alloc("gradient of a row's log-softmax", whole[1:], dtype, "zeros but for labels")
        found = t.alloc("gradients of a half's rows", half, dtype, "until all are there")
        del zeros
        return [found]

    found = []
    for which, rows in zip(HALVES, split(t, given, [half, half]), strict=True):
        saved = t.alloc(f"log-softmax of {which} rows", half, dtype, "one row after another")
        name = f"log-probabilities of {which} rows"
        found.append(t.op(name, (rows,), half[:-1], dtype, saves=(saved,), backward=backward, name=name))
    return concatenate(t, found, whole[:-1], "log-probabilities")


def _by_kernel(w: Context, given: Tensor, saved: tuple[Tensor, ...]) -> Tensor:
    """Of all logits at once, which are saved; the backward makes their gradient at once."""
    t, whole, dtype = w.t, given.shape, given.dtype
    kept = [
        t.alloc(name, whole[:-1], "float32", "one per token")
        for name in ("log-sum-exp", "mean logit of a token")
    ]

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [t.alloc("gradient of the scored logits", whole, dtype, "1[label] - p for each entry")]

    return t.op(
        "log-probabilities",
        (given,),
        whole[:-1],
        "float32",
        saves=(given, *saved, *kept),
        backward=backward,
        name="log-probabilities",
    )


def rows_of(w: Context, each: Tensor, mask: Tensor) -> Tensor:
    """(N,) sums of the log-probabilities (N, T) of tokens that count."""
    t, tokens = w.t, each.shape
    masked = t.op(
        "mul",
        (each,),
        tokens,
        "float32",
        saves=(mask,),
        name="masked log-probabilities",
        backward=lambda t, n, g: [t.alloc("gradient of log-probabilities", tokens, "float32", "masked")],
    )
    return t.op(
        "sum",
        (masked,),
        (w.batch,),
        "float32",
        name="log-probabilities of rows",
        backward=lambda t, n, g: [Tensor(g.buffer, tokens, "float32")],
    )
