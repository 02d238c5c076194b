"""The loss of TRL's DistillationTrainer: the divergence of a student's next-token distributions from a
teacher's, tile by tile; what `planner/run/distillation.py` runs, where its sources are named.

B rows, S tokens of prompt and completion, C of a completion, N = B x C, H hidden sizes, V vocabulary. Nothing
is under autocast.
"""

from __future__ import annotations

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.decoder import Decoder, Guard
from memplan.planner.formula.forward.fused_losses import TOKEN_TILE, VOCABULARY_TILE
from memplan.planner.formula.parameters import ParameterTable, S
from memplan.planner.formula.sharding.plan import StrategyHooks
from memplan.planner.formula.symbolic.expr import exceeds, maximum, minimum
from memplan.planner.formula.tape.ops import Grads, cast, part_of
from memplan.planner.formula.tape.tape import Node, Tape, Tensor
from memplan.planner.inputs.tasks import generated


def taught(w: Context, teacher: ParameterTable, guard: Guard, ids: Tensor) -> Tensor:
    """The teacher's last hidden states, (B, S, H), of a forward in evaluation mode and without a graph."""
    t = w.t
    plain = w.setup.with_(checkpointing="none", autocast="none")
    other = Context(t, plain, teacher, w.device, w.batch, w.sequence, w.single, {})
    training, t.training = t.training, False
    with t.no_grad(), t.inside("teacher: "):
        hidden = Decoder(other, guard, StrategyHooks(), ids).run()
    t.training = training
    return hidden


def divergence_loss(w: Context, hidden: Tensor, others: Tensor) -> Tensor:
    """The mean divergence of the completions' tokens, of both models' last hidden states."""
    t, tokens = w.t, w.batch * generated(w.setup).completion
    with t.inside("loss: "):
        beside = [
            t.alloc("scored tokens", (tokens,), "bool", "every token is real"),
            t.alloc("places of scored tokens", (tokens,), "int64", "every token is real"),
        ]
        rows = [_completions(w, each) for each in (hidden, others)]
        picked = [_picked(w, each, beside[1]) for each in rows]
        rows.clear()
        divergence = _tiled(w, picked)
        picked.clear()
        shape = divergence.shape
        loss = t.op(
            "sum",
            (divergence,),
            (),
            "float32",
            name="loss",
            backward=lambda t, n, g: [Tensor(g.buffer, shape, "float32")],
        )
        del beside
    return loss


def _completions(w: Context, hidden: Tensor) -> Tensor:
    """(N, H): the states before each token of a completion, brought together where there are several rows."""
    length, width = generated(w.setup).completion, hidden.shape[-1]
    part = part_of(w.t, hidden, (w.batch, S - 1, width))
    shape = (w.batch, length, width)
    part = part_of(w.t, part, shape)
    return w.t.op(
        "reshape",
        (part,),
        (w.batch * length, width),
        hidden.dtype,
        alias=part if w.single else None,
        name="states before each token of a completion",
        backward=lambda t, n, g: [Tensor(g.buffer, shape, g.dtype)],
    )


def _picked(w: Context, rows: Tensor, places: Tensor) -> Tensor:
    """Those of real tokens, which all are: indexing copies."""
    shape = rows.shape

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [
            t.alloc("gradient of the states before each token", shape, grad.dtype, "zeros, then added to")
        ]

    return w.t.op(
        "index", (rows,), shape, rows.dtype, saves=(places,), backward=backward, name="scored states"
    )


def _tiled(w: Context, picked: list[Tensor]) -> Tensor:
    """A divergence for each token; two tiles of fp32 logits, one for each model, in the forward and again in
    the backward, where gradients are summed in fp32.
    """
    t, spec = w.t, w.parameter_table.spec
    student, other = picked
    tokens, width = student.shape
    names = [f"{spec.head_name}.weight", *([f"{spec.head_name}.bias"] if spec.head_bias else [])]
    inputs = (student, *(w.weight(name) for name in names))
    kinds, student_dtype = [(each.shape, each.dtype) for each in inputs], student.dtype
    first = minimum(tokens, TOKEN_TILE)
    further = minimum(maximum(tokens, TOKEN_TILE) - TOKEN_TILE, TOKEN_TILE)

    def tiles(t: Tape) -> list[Tensor]:
        why = "one buffer for every tile of a model's logits"
        return [t.alloc("tile of logits", (first, VOCABULARY_TILE), "float32", why) for _ in range(2)]

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        sums = [
            t.alloc("gradient in fp32", shape, "float32", "summed over the tiles") if node.needs(i) else None
            for i, (shape, _) in enumerate(kinds)
        ]
        held, copied = tiles(t), None
        if student_dtype != "float32":
            for height, times in ((further, exceeds(tokens, TOKEN_TILE)), (first, 1)):
                for start in range(0, spec.vocab, VOCABULARY_TILE):
                    shape = (height, min(VOCABULARY_TILE, spec.vocab - start), times)
                    copied = t.alloc("tile of gradients", shape, student_dtype, "for the product")
        narrow = [
            None if total is None else cast(t, total, dtype)
            for total, (_, dtype) in zip(sums, kinds, strict=True)
        ]
        del held, copied  # which nobody deletes: they are there while the sums are cast
        return narrow

    sums = [t.alloc("running sums", (tokens,), "float32", "of both models' distributions") for _ in range(9)]
    held = tiles(t)
    logs = [t.alloc("log-sum-exp of the logits", (tokens,), "float32", "one per token") for _ in range(2)]
    entropy = t.alloc("entropy of a token", (tokens,), "float32", "a metric")
    del held, entropy
    made = t.op(
        "divergence",
        inputs,
        (tokens,),
        "float32",
        saves=(student, other, *logs),
        backward=backward,
        name="divergences",
    )
    del sums, logs
    return made
