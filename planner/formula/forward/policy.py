"""GRPO's and RLOO's losses: log-probabilities of a completion's tokens by the policy, and the clipped ratio
of them or of whole rows.

B rows, S tokens of prompt and completion, C of a completion. Source: trl 1.16 trainer/grpo_trainer.py and
rloo_trainer.py _get_per_token_logps_and_entropies, _compute_loss, trainer/utils.py add_fused_lm_head.
"""

from __future__ import annotations

from collections.abc import Callable

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.fused_losses import log_probabilities
from memplan.planner.formula.parameters import S
from memplan.planner.formula.tape.ops import Grads
from memplan.planner.formula.tape.tape import Node, Tape, Tensor
from memplan.planner.inputs.tasks import generated


def joined(w: Context) -> list[Tensor]:
    """The micro-batch as the trainer makes it of its rows: prompts and completions, and their mask."""
    why = "prompts and completions, joined"
    return [w.t.alloc(name, (w.batch, S), "int64", why) for name in ("input_ids", "attention_mask")]


def scored(w: Context, hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A log-probability for each token of the completions, (B, C), and what is kept beside it."""
    t, length = w.t, generated(w.setup).completion
    places = (w.batch, S - 1)
    mask = t.alloc("scored tokens", places, "bool", "which are completions")
    each = log_probabilities(w, hidden, length)
    tokens = each.shape

    def gathered(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [t.alloc("gradient of log-probabilities", tokens, "float32", "of the completions' places")]

    spread = t.op(
        "masked_scatter",
        (each,),
        places,
        "float32",
        saves=(mask,),
        backward=gathered,
        name="log-probabilities in their places",
    )
    entropy = t.alloc("entropy of a token", places, "float32", "a metric")
    del each

    def around(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [t.alloc("gradient of log-probabilities in their places", places, "float32", "zeros around")]

    found = t.op(
        "cat",
        (spread,),
        (w.batch, length),
        "float32",
        backward=around,
        name="log-probabilities of completions",
    )
    return found, [entropy]


def policy_loss(w: Context, rows: Tensor) -> Tensor:
    """-min(ratio x advantage, clipped ratio x advantage), and the divergence from the reference: a handful of
    numbers for each token of a completion.
    """
    t, shape = w.t, rows.shape
    compared = w.setup.reference != "none"
    names = ["ratio", "ratio times advantage", "clipped ratio times advantage"]
    names += ["ratio to the reference", "divergence"] if compared else []

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [t.alloc("gradient of log-probabilities of completions", shape, "float32", "of the ratio")]

    with t.inside("loss: "):
        kept = [t.alloc(name, shape, "float32", "one per token") for name in names]
        return t.op("clipped ratio", (rows,), (), "float32", saves=kept, backward=backward, name="loss")


def rows_loss(w: Context, rows: Tensor) -> Tensor:
    """The same of each row's probability: the sum of its tokens' log-probabilities, a number for each row."""
    t, shape = w.t, rows.shape

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [t.alloc("gradient of log-probabilities of completions", shape, "float32", "of their row's")]

    with t.inside("loss: "):
        masked = t.alloc("log-probabilities of real tokens", shape, "float32", "one per token")
        kept = [t.alloc("ratio", (w.batch,), "float32", "one per row")]
        del masked
        return t.op("clipped ratio", (rows,), (), "float32", saves=kept, backward=backward, name="loss")


LOSSES: dict[str, Callable[[Context, Tensor], Tensor]] = {"grpo": policy_loss, "rloo": rows_loss}
"""Task -> the loss of what `scored` gives."""
