"""From the last hidden states to the loss of a pooled head: scores of every token, of which each row's last
one is kept.

N rows, S sequence, O outputs. Sources: transformers 5.24 modeling_layers.py GenericForSequenceClassification,
loss/loss_utils.py ForSequenceClassificationLoss; trl 1.16 trainer/reward_trainer.py compute_loss.
"""

from __future__ import annotations

from collections.abc import Callable

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.losses import head, log_likelihood
from memplan.planner.formula.parameters import S
from memplan.planner.formula.tape.ops import Grads, cast, unary
from memplan.planner.formula.tape.tape import Node, Tape, Tensor


def pooled_logits(w: Context, given: Tensor) -> Tensor:
    """(N, O): the scores of each row's last token; those of every token, (N, S, O), are made first."""
    t = w.t
    with t.inside("logits: "):
        scores = head(w, given)
        real = t.alloc("real tokens", (w.batch, S), "bool", "which ids are no padding")
        places = [
            t.alloc("real tokens", (w.batch, S), "int32", "which ids are no padding"),
            t.alloc("token indices", (S,), "int32", "0 to S - 1"),
        ]
        del real
        found = t.alloc("places of real tokens", (w.batch, S), "int32", "the largest is the last token's")
        last = t.alloc("last tokens", (w.batch,), "int64", "where each row ends")
        del found
        rows = t.alloc("row indices", (w.batch,), "int64", "0 to N - 1")
        whole = scores.shape
        pooled = t.op(
            "index",
            (scores,),
            (w.batch, whole[-1]),
            scores.dtype,
            saves=(rows, last),
            name="pooled logits",
            why="the output of the model: one row of scores for each sequence",
            backward=lambda t, n, g: [
                t.alloc("gradient of the scores", whole, g.dtype, "zeros but for the last tokens")
            ],
        )
        del places
    return pooled


def class_loss(w: Context, logits: Tensor) -> Tensor:
    """Cross-entropy of one label for each row; of one output, the mean squared error."""
    t = w.t
    wide = w.autocast_fp32(logits) if w.auto is not None else logits
    with t.inside("loss: "):
        if logits.shape[-1] == 1:
            return _number(t, wide, "mse_loss")
        found = t.op(
            "log_softmax",
            (wide,),
            wide.shape,
            wide.dtype,
            saves_output=True,
            name="log-softmax of the logits",
            backward=lambda t, n, g: [t.alloc("gradient of the logits", g.shape, g.dtype, "exp and sum")],
        )
        return _number(t, found, "nll_loss")


def token_classes(w: Context, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """(logits of every token, loss): cross-entropy of all of them, in fp32, of the labels as they are."""
    t = w.t
    with t.inside("logits: "):
        logits = head(w, hidden)
    if logits.buffer is not None:
        logits.buffer.info.names_itself = True
    with t.inside("loss: "):
        return logits, log_likelihood(w, cast(t, logits, "float32", "fp32 logits"), None)


def pair_loss(w: Context, logits: Tensor) -> Tensor:
    """-log sigmoid(chosen - rejected): a number for each pair, from fp32 scores."""
    with w.t.inside("loss: "):
        margin = unary(w.t, "scale", logits, "margins")
        return _number(w.t, unary(w.t, "sigmoid", margin, "log-sigmoid"), "mean")


def _number(t: Tape, given: Tensor, kind: str) -> Tensor:
    shape = given.shape

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [t.alloc("gradient of the loss's input", shape, grad.dtype, "one for each score")]

    return t.op(kind, (given,), (), given.dtype, saves=(given,), backward=backward, name="loss")


def classification(w: Context, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """(pooled logits, loss) of a classifier: the loss is the model's own, before its outputs are cast."""
    logits = pooled_logits(w, hidden)
    return logits, class_loss(w, logits)


def preference(w: Context, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """(pooled scores in fp32, loss) of a reward model: the loss is the trainer's, of outputs that accelerate
    has cast.
    """
    scores = pooled_logits(w, hidden)
    if w.setup.outputs_fp32 and w.auto is not None:
        scores = cast(w.t, scores, "float32", "fp32 copy of the scores")
    return scores, pair_loss(w, scores)


POOLED_LOSSES: dict[str, Callable[[Context, Tensor], tuple[Tensor, Tensor]]] = {
    "classify": classification,
    "prm": token_classes,
    "reward": preference,
}
"""Task -> what its trainer makes of the last hidden states."""
