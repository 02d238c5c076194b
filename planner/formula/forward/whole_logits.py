"""ORPO's and CPO's loss: a chosen and a rejected row's log-probabilities from whole logits, and the chosen
row's cross-entropy; and DPO's log-probabilities in stacks that take whole logits.

N rows, S sequence, V vocabulary. Sources: trl 1.16 experimental/orpo/orpo_trainer.py concatenated_forward;
torch 2.13 ATen/native/LossNLL.cpp, ATen/native/cuda/SoftMax.cu.
"""

from __future__ import annotations

from memplan.planner.formula.forward import token_scores
from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.losses import log_likelihood, log_softmax, logits_of
from memplan.planner.formula.parameters import S
from memplan.planner.formula.resident.loading import batch_tensors
from memplan.planner.formula.symbolic.expr import Sized, as_expr, ceil_div, exceeds
from memplan.planner.formula.tape.ops import add, cast, part_of, unary
from memplan.planner.formula.tape.tape import Tensor
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
        rows = token_scores.rows_of(w, each, mask)
    return rows, [logits] if w.setup.recipe in HOLDS_LOGITS else []


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
    """(N,): a sum over each row's tokens."""
    t = w.t
    tokens = (w.batch, as_expr(w.sequence) - 1)
    labels = t.alloc("scored labels", tokens, "int64", "which entry of the logits counts")
    mask = t.alloc("scored tokens", tokens, "bool", "which are completions")
    each = token_scores.selected(w, part_of(t, logits, (*tokens, logits.shape[-1])), labels)
    return unary(t, "scale", token_scores.rows_of(w, each, mask), "mean log-probabilities")
