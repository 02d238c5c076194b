"""Terms that are added to the loss: AdaLoRA's regularization of its adapters, and a mixture's loss of how its
experts are chosen. N = B x S tokens, E experts, k experts a token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.experts import softmax, top
from memplan.planner.formula.forward.linears import orthogonality
from memplan.planner.formula.resident.loading import batch_tensors
from memplan.planner.formula.symbolic.expr import product
from memplan.planner.formula.tape.ops import add, cast
from memplan.planner.formula.tape.tape import Tape, Tensor
from memplan.planner.inputs.spec import Moe

if TYPE_CHECKING:
    from memplan.planner.formula.forward.decoder import StepInterpreter

Routed = list[tuple[Tensor, int]]  # a router's logits (N, E), and how many layers they stand for


def regularized(w: Context, blocks: Iterable[tuple[list[StepInterpreter], int]], loss: Tensor) -> Tensor:
    """The loss with AdaLoRA's regularization of every adapter, in the order of the model's modules: its
    gradients come first, so all adapters have one from the start.
    """
    t, spec = w.t, w.parameter_table.spec
    loss = _with_part(t, loss, orthogonality(w, spec.projections))
    key = 0
    for block, times in blocks:
        with t.repeat(times):
            for step in block:
                with w.at_layer(key, step.trained):
                    part = orthogonality(w, step.layer.linears(), f"{step.layer.prefix}.*.")
                    loss = _with_part(t, loss, part)
                key += 1
    return _with_part(t, loss, orthogonality(w, [spec.head]))


def _with_part(t: Tape, loss: Tensor, part: Tensor | None) -> Tensor:
    """The loss with one more term: an activation as the loss is, however layers are grouped."""
    if part is None:
        return loss
    made = add(t, loss, part, "loss")
    if made.buffer is not None:
        made.buffer.info.component = "activations"
    return made


def balanced(w: Context, loss: Tensor, routed: Routed) -> Tensor:
    """The loss with that of all routers' logits (transformers 5.24 models/mixtral/modeling_mixtral.py
    load_balancing_loss_func): their probabilities are saved, in fp32 under autocast, and averaged over the
    tokens that are no padding. Left out: a few numbers for each expert.
    """
    t, layers = w.t, w.parameter_table.spec.layers
    experts = next(layer.mlp.top_k for _, layer in layers if isinstance(layer.mlp, Moe))
    with t.inside("balance: "):
        mask: Tensor | None = None
        if "attention_mask" in batch_tensors(w.setup):
            mask = t.alloc("flat mask", (product((w.batch, w.sequence)),), "float32", "1 for each real token")
        for logits, times in routed:
            with t.repeat(times):
                probabilities = softmax(t, w.autocast_fp32(logits))
                values, chosen = top(t, probabilities, experts)
                if mask is None:
                    counted = t.alloc("chosen experts", (product(chosen.shape),), "int32", "for their count")
                else:
                    counted = t.alloc("mask of choices", (product(chosen.shape),), "float32", "k a token")
                del counted, values, chosen
                loss = _with_part(t, loss, _summed(t, probabilities, mask))
                del probabilities
        del mask
    return loss


def _summed(t: Tape, probabilities: Tensor, mask: Tensor | None) -> Tensor:
    """The term of one layer: a sum over tokens of probabilities in fp32, without those of padding."""
    shape = probabilities.shape
    wide = cast(t, probabilities, "float32")
    if mask is not None:
        wide = t.op(
            "mul",
            (wide,),
            shape,
            "float32",
            saves=(mask,),
            name="probabilities of real tokens",
            backward=lambda t, n, g: [t.alloc("gradient of probabilities", shape, "float32")],
        )
    return t.op(
        "sum",
        (wide,),
        (),
        "float32",
        name="balance of one layer",
        backward=lambda t, n, g: [Tensor(g.buffer, shape, "float32")],
    )


def as_returned(w: Context, routed: Routed) -> Routed:
    """What the model's output holds of the logits: copies in fp32 where accelerate makes them."""
    if not w.setup.outputs_fp32 or w.auto is None:
        return routed
    made: Routed = [_wide(w.t, *each) for each in routed]
    with w.t.dropping():
        routed.clear()
    return made


def _wide(t: Tape, logits: Tensor, times: int) -> tuple[Tensor, int]:
    with t.repeat(times):
        return cast(t, logits, "float32", "fp32 copy of router logits"), times
