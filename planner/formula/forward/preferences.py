"""DPO's and KTO's loss: log-probabilities of rows by the model, then, without a graph, by the reference.

N rows, S sequence. Source: trl 1.16 trainer/dpo_trainer.py _compute_loss, trainer/utils.py add_fused_lm_head.
"""

from __future__ import annotations

from collections.abc import Callable

from memplan.planner.formula.forward import earlier_trl, whole_logits
from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.decoder import Decoder, Guard
from memplan.planner.formula.forward.fused_losses import log_probabilities
from memplan.planner.formula.forward.token_scores import summed
from memplan.planner.formula.parameters import ParameterTable, S, reference_of
from memplan.planner.formula.sharding.plan import StrategyHooks
from memplan.planner.formula.tape.ops import Grads, unary
from memplan.planner.formula.tape.tape import Node, Tape, Tensor
from memplan.planner.tables.tasks import KERNEL_SINCE, TASKS


def begin(w: Context) -> list[Tensor]:
    """What the trainer makes before the model runs: the labels, which live until the loss is there."""
    return [w.t.alloc("labels", (w.batch, S), "int64", "-100 for what is no completion")]


def scored(w: Context, hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A log-probability for each row, and what is kept beside it for the metrics."""
    if w.setup.loss == "full":
        score: Score = earlier_trl.scored if earlier_trl.holds(w.setup) else whole_logits.scored
        return score(w, hidden)
    t = w.t
    each = log_probabilities(w, hidden)
    tokens = each.shape
    kept = [
        t.alloc("entropy of a token", tokens, "float32", "a metric"),
        t.alloc("mean logit of a token", tokens, "float32", "a metric"),
        t.alloc("most likely tokens", tokens, "bool", "a metric"),
        t.alloc("scored tokens", tokens, "bool", "which are completions"),
    ]
    return summed(w, each), [*kept, each]


def divergence(w: Context, guard: Guard, ids: Tensor) -> list[Tensor]:
    """The model's log-probabilities of exchanged completions, without a graph, where the task has them."""
    if not TASKS[w.setup.task].divergence:
        return []
    t = w.t
    labels = t.alloc("labels of exchanged completions", (w.batch, S), "int64", "-100 for what is none")
    with t.no_grad(), t.inside("divergence: "):
        rows = alone(w, w.parameter_table, guard, ids)
    t.forget_casts()
    del labels
    return [rows]


Score = Callable[[Context, Tensor], tuple[Tensor, list[Tensor]]]
"""The last hidden states' log-probabilities, and what is kept beside them."""


def alone(
    w: Context,
    table: ParameterTable,
    guard: Guard,
    ids: Tensor,
    leaves: bool = False,
    score: Score = scored,
    held: list[Tensor] | None = None,
    caches: bool = False,
) -> Tensor:
    """The log-probabilities of rows by one more forward, of which nothing else stays but what `held`
    takes. `caches`: it keeps every layer's keys and values until then.
    """
    other = Context(
        w.t, w.setup.with_(checkpointing="none"), table, w.device, w.batch, w.sequence, w.single, {}
    )
    other.leaves = leaves
    other.cache = [] if caches else None
    decoder = Decoder(other, guard, StrategyHooks(), ids)
    rows, kept = score(other, decoder.run())
    decoder.outside.clear()
    if held is not None:
        held += kept + (other.cache or [])
    del kept
    with w.t.dropping():  # of every layer
        other.cache = None
    return rows


def against_reference(w: Context, guard: Guard, ids: Tensor, held: list[Tensor] | None) -> Tensor | None:
    """The reference's log-probability of each row, made without a graph; None where the batch has it.
    `held`: what is to keep the tensors beside them.
    """
    table = reference_of(w.parameter_table)
    if table is None:
        return None
    t, rows = w.t, None
    leaves = w.setup.reference == "model"  # nobody froze its weights: autocast keeps their copies
    training, t.training = t.training, not leaves  # a second model is in evaluation mode
    diverges = TASKS[w.setup.task].divergence
    # KTO before 1.15 leaves a second model's cache on, that of the last pass up to 1.13
    caches = diverges and leaves and earlier_trl.holds(w.setup)
    passes = [(None, caches)] if diverges else []
    for kept, cached in (*passes, (held, caches and w.setup.trl < KERNEL_SINCE)):
        with t.no_grad(), t.inside("reference: "):
            rows = alone(w, table, guard, ids, leaves, held=kept, caches=cached)
        t.forget_casts()
    t.training = training
    return rows


def preference_loss(w: Context, rows: Tensor, reference: Tensor | None) -> Tensor:
    """-log sigmoid(beta (chosen - rejected)): a handful of numbers for each pair."""
    t, shape = w.t, rows.shape

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [t.alloc("gradient of log-probabilities of rows", shape, "float32", "of both halves")]

    with t.inside("loss: "):
        ratios = unary(t, "scale", rows, "log-ratios")
        return t.op("logsigmoid", (ratios,), (), "float32", saves=(ratios,), backward=backward, name="loss")
