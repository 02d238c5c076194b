"""DPO's and KTO's log-probabilities in TRL before 1.15, of whole logits, and the metrics that it makes of
them.

N rows, S sequence, V vocabulary. Source: trl 1.9 and 1.14 trainer/dpo_trainer.py and kto_trainer.py
_compute_loss, trainer/utils.py entropy_from_logits.
"""

from __future__ import annotations

from memplan.planner.formula.forward import token_scores
from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.losses import logits_of
from memplan.planner.formula.forward.token_scores import HALVES
from memplan.planner.formula.symbolic.expr import as_expr, ceil_div, minimum, product
from memplan.planner.formula.tape.ops import cast, part_of
from memplan.planner.formula.tape.tape import Tensor
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.tasks import KERNEL_SINCE, TASKS


def holds(setup: Setup) -> bool:
    """Whether a setup's trainer takes whole logits, and holds those of model and reference until its metrics
    are there.
    """
    return TASKS[setup.task].folds and setup.loss == "full"


def scored(w: Context, hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A log-probability for each row, and what is kept beside it: the logits, first, and the entropies that
    the kernel made with it.
    """
    t, batch = w.t, w.batch
    logits = logits_of(w, hidden)
    t.forget_casts()  # accelerate converts behind its autocast
    if w.setup.outputs_fp32 and w.auto is not None:
        logits = cast(t, logits, "float32", "fp32 logits")
    tokens, kept = (batch, as_expr(w.sequence) - 1), [logits]
    with t.inside("loss: "):
        each = token_scores.selected(w, part_of(t, logits, (*tokens, logits.shape[-1])))
        if w.setup.trl >= KERNEL_SINCE:
            kept.append(t.alloc("entropy of a token", tokens, "float32", "a metric"))
            return token_scores.summed(w, each), kept
        mask = t.alloc("scored tokens", tokens, "bool", "which are completions")
        return token_scores.rows_of(w, each, mask), kept


def metrics(w: Context, logits: Tensor, held: list[Tensor]) -> None:
    """What is made of whole logits beside the loss: up to 1.13 the entropy of a copy of all but the last
    token's, 128 tokens at a time; then the mean of a copy of one half's completions, which for KTO is of
    copies of both halves. `held`, what the reference returned, goes then.
    """
    t, dtype, vocabulary = w.t, logits.dtype, logits.shape[-1]
    tokens = (w.batch, as_expr(w.sequence) - 1)
    half = (ceil_div(w.batch, 2), *tokens[1:], vocabulary)
    with t.no_grad(), t.inside("metrics: "):
        if w.setup.trl < KERNEL_SINCE:
            flat = t.alloc("flat logits", (*tokens, vocabulary), dtype, "a copy of all but the last token's")
            part = (minimum(product(tokens), 128), vocabulary)
            made = [
                t.alloc(name, part, dtype, "of 128 tokens")
                for name in ("log-softmax of a part", "exp of it", "their product")
            ]
            del flat, made
        copies = []
        if TASKS[w.setup.task].rows == 1:
            copies = [t.alloc(f"logits of {each} rows", half, dtype, "picked") for each in HALVES]
        counted = t.alloc("logits of one half", half, dtype, "completions'")
        del counted, copies
    with t.dropping():  # a cache of every layer may be among them
        held.clear()
