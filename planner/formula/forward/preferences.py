"""DPO's loss: log-probabilities of chosen and rejected rows by the model, then, without a graph, by the
reference.

N rows, S sequence. Source: trl 1.16 trainer/dpo_trainer.py _compute_loss, trainer/utils.py add_fused_lm_head.
"""

from __future__ import annotations

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.decoder import Decoder, Guard
from memplan.planner.formula.forward.fused_losses import log_probabilities
from memplan.planner.formula.parameters import S, reference_of
from memplan.planner.formula.sharding.plan import StrategyHooks
from memplan.planner.formula.tape.ops import Grads, unary
from memplan.planner.formula.tape.tape import Node, Tape, Tensor


def begin(w: Context) -> list[Tensor]:
    """What the trainer makes before the model runs: the labels, which live until the loss is there."""
    return [w.t.alloc("labels", (w.batch, S), "int64", "-100 for what is no completion")]


def scored(w: Context, hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A log-probability for each row, and what is kept beside it for the metrics."""
    t = w.t
    each = log_probabilities(w, hidden)
    tokens = each.shape
    kept = [
        t.alloc("entropy of a token", tokens, "float32", "a metric"),
        t.alloc("mean logit of a token", tokens, "float32", "a metric"),
        t.alloc("most likely tokens", tokens, "bool", "a metric"),
        t.alloc("scored tokens", tokens, "bool", "which are completions"),
    ]
    rows = t.op(
        "sum",
        (each,),
        (w.batch,),
        "float32",
        name="log-probabilities of rows",
        backward=lambda t, n, g: [t.alloc("gradient of log-probabilities", tokens, "float32", "expanded")],
    )
    return rows, [*kept, each]


def against_reference(w: Context, guard: Guard, ids: Tensor) -> Tensor | None:
    """The reference's log-probability of each row, made without a graph; None where the batch has it."""
    table = reference_of(w.parameter_table)
    if table is None:
        return None
    t = w.t
    setup = w.setup.with_(checkpointing="none")
    with t.no_grad(), t.inside("reference: "):
        other = Context(t, setup, table, w.device, w.batch, w.sequence, w.single, {})
        other.leaves = w.setup.reference == "model"  # nobody froze its weights: autocast keeps their copies
        decoder = Decoder(other, guard, StrategyHooks(), ids)
        rows, kept = scored(other, decoder.run())
        decoder.outside.clear()
        del kept
    t.forget_casts()
    return rows


def preference_loss(w: Context, rows: Tensor, reference: Tensor | None) -> Tensor:
    """-log sigmoid(beta (chosen - rejected)): a handful of numbers for each pair."""
    t, shape = w.t, rows.shape

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [t.alloc("gradient of log-probabilities of rows", shape, "float32", "of both halves")]

    with t.inside("loss: "):
        ratios = unary(t, "scale", rows, "log-ratios")
        return t.op("logsigmoid", (ratios,), (), "float32", saves=(ratios,), backward=backward, name="loss")
