"""ORPO's and CPO's loss: a chosen and a rejected row's log-probabilities from whole logits, and the chosen
row's cross-entropy; and DPO's log-probabilities in stacks that take whole logits.

N rows, S sequence, V vocabulary. Sources: trl 1.16 experimental/orpo/orpo_trainer.py concatenated_forward,
kernels/logprob_entropy.py; torch 2.13 ATen/native/LossNLL.cpp, ATen/native/cuda/SoftMax.cu.
"""

from __future__ import annotations

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.losses import log_likelihood, log_softmax, logits_of
from memplan.planner.formula.parameters import S
from memplan.planner.formula.resident.loading import batch_tensors
from memplan.planner.formula.symbolic.expr import Sized, as_expr, ceil_div, exceeds, minimum, product
from memplan.planner.formula.tape.ops import Grads, add, cast, concatenate, part_of, split, unary
from memplan.planner.formula.tape.tape import Node, Tape, Tensor
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.tasks import HOLDS_LOGITS


def scored(w: Context, hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
    """DPO's log-probability for each row, of all logits in fp32 and their log-softmax, which is saved; and
    the logits where the stack names them until the loss is there.
    """
    t, batch = w.t, w.batch
    logits = cast(t, logits_of(w, hidden), "float32", "fp32 logits")
    with t.inside("loss: "):
        tokens = (batch, as_expr(w.sequence) - 1)
        whole = (*tokens, logits.shape[-1])
        labels = t.alloc("scored labels", tokens, "int64", "which entry of the logits counts")
        mask = t.alloc("scored tokens", tokens, "bool", "which are completions")
        given = part_of(t, logits, whole)
        copied = t.alloc("contiguous logits", whole, "float32", "all but the last token's, for the kernel")
        probabilities = log_softmax(w, given)
        del copied
        each = t.op(
            "gather",
            (probabilities,),
            tokens,
            "float32",
            saves=(labels,),
            name="log-probabilities",
            backward=lambda t, n, g: [
                t.alloc("gradient of the log-softmax", whole, "float32", "zeros but for the labels' places")
            ],
        )
        rows = rows_of(w, each, mask)
    return rows, [logits] if w.setup.recipe in HOLDS_LOGITS else []


def selected(w: Context, hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
    """DPO's log-probability for each row in TRL before 1.13, one row after another, and the logits that it is
    of (trl 1.9 trainer/utils.py selective_log_softmax). Of fp32 logits a log-sum-exp, which saves them; of
    others a log-softmax, which is saved.
    """
    t, batch = w.t, w.batch
    logits = logits_of(w, hidden)
    if w.setup.outputs_fp32 and w.auto is not None:
        logits = cast(t, logits, "float32", "fp32 logits")
    tokens = (batch, as_expr(w.sequence) - 1)
    with t.inside("loss: "):
        given = part_of(t, logits, (*tokens, logits.shape[-1]))
        each = (_of_sums if logits.dtype == "float32" else _of_softmax)(w, given)
        mask = t.alloc("scored tokens", tokens, "bool", "which are completions")
        rows = rows_of(w, each, mask)
    return rows, [logits]


HALVES = ("chosen", "rejected")
"""The rows of a batch. What is made row by row is two blocks here, which one pair's are."""


def _half(w: Context, given: Tensor) -> tuple[Sized, ...]:
    return (ceil_div(w.batch, 2), *given.shape[1:])


def _of_sums(w: Context, given: Tensor) -> Tensor:
    """The labels' logits less the log-sum-exp of their row's."""
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


def metrics(w: Context, logits: Tensor) -> None:
    """What TRL before 1.13 makes of whole logits beside the loss: the entropy of a copy of all but the last
    token's, 128 tokens at a time, then a copy of one half of them, whose mean it takes.
    """
    t, dtype, vocabulary = w.t, logits.dtype, logits.shape[-1]
    tokens = (w.batch, as_expr(w.sequence) - 1)
    with t.no_grad(), t.inside("metrics: "):
        flat = t.alloc("flat logits", (*tokens, vocabulary), dtype, "a copy of all but the last token's")
        part = (minimum(product(tokens), 128), vocabulary)
        made = [
            t.alloc(name, part, dtype, "of 128 tokens")
            for name in ("log-softmax of a part", "exp of it", "their product")
        ]
        del flat, made
        half = t.alloc(
            "logits of one half", (ceil_div(w.batch, 2), *tokens[1:], vocabulary), dtype, "completions'"
        )
        del half


def joined(w: Context) -> list[Tensor]:
    """The pairs' rows in one tensor each, beside the batch that they came in."""
    shape = (w.batch, S)
    return [
        w.t.alloc(name, shape, "int64", "chosen and rejected rows, joined") for name in batch_tensors(w.setup)
    ]


def pairs_loss(w: Context, logits: Tensor) -> Tensor:
    """The chosen rows' cross-entropy, and a number for each pair of the rows' log-probabilities."""
    if w.device.kind == "cpu":
        raise UsageError(
            f"task '{w.setup.task}' has no rule for device 'cpu', where TRL takes log-probabilities "
            "row by row: use another device"
        )
    t = w.t
    with t.inside("loss: "):
        likelihood = _likelihood(w, logits)
        rows = _log_probabilities(w, logits)
        shape = rows.shape
        found = t.op(
            "logsigmoid",
            (rows,),
            (),
            "float32",
            saves=(rows,),
            backward=lambda t, n, g: [t.alloc("gradient of log-probabilities of rows", shape, "float32")],
            name="loss",
        )
        return add(t, likelihood, found, "loss")


def _likelihood(w: Context, logits: Tensor) -> Tensor:
    """Cross-entropy of the chosen half: of a contiguous copy of all but the last token's logits, which one
    pair's are already.
    """
    t, vocabulary, pairs = w.t, logits.shape[-1], ceil_div(w.batch, 2)
    chosen = part_of(t, logits, (pairs, w.sequence, vocabulary))
    shape = (pairs, as_expr(w.sequence) - 1, vocabulary)
    shifted = part_of(t, chosen, shape)
    copies: Sized = exceeds(pairs, 1)
    copied = t.alloc("shifted logits", (*shape, copies), logits.dtype, "a contiguous copy of several pairs'")
    labels = t.alloc("shifted labels", shape[:-1], "int64", "labels but the first")
    loss = log_likelihood(w, shifted, labels)
    del copied
    return loss


def _log_probabilities(w: Context, logits: Tensor) -> Tensor:
    """(N,): a sum over each row's tokens; the kernel saves all logits and makes their gradient at once."""
    t, batch = w.t, w.batch
    tokens = (batch, as_expr(w.sequence) - 1)
    whole = (*tokens, logits.shape[-1])
    scored = part_of(t, logits, whole)
    labels = t.alloc("scored labels", tokens, "int64", "which entry of the logits counts")
    mask = t.alloc("scored tokens", tokens, "bool", "which are completions")
    kept = [
        t.alloc(name, tokens, "float32", "one per token") for name in ("log-sum-exp", "mean logit of a token")
    ]
    dtype = logits.dtype

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [t.alloc("gradient of the scored logits", whole, dtype, "1[label] - p for each entry")]

    each = t.op(
        "log-probabilities",
        (scored,),
        tokens,
        "float32",
        saves=(scored, labels, *kept),
        backward=backward,
        name="log-probabilities",
    )
    return unary(t, "scale", rows_of(w, each, mask), "mean log-probabilities")


def rows_of(w: Context, each: Tensor, mask: Tensor) -> Tensor:
    """(N,) sums of the log-probabilities (N, S - 1) of tokens that count."""
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


SCORES = {"dpo_logits": scored, "dpo_whole": selected}
"""Task -> its log-probabilities, of whole logits."""
MEASURED = ("dpo_whole",)
"""The tasks whose metrics are made of whole logits, which they hold as long, those of the reference too."""
