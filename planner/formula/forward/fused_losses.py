"""From the last hidden states to the loss without whole logits: TRL's tiles and Liger's chunks.

N tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.symbolic.expr import (
    Sized,
    as_expr,
    ceil_div,
    exceeds,
    maximum,
    minimum,
    power_of_two,
)
from memplan.planner.formula.tape.ops import Grads, cast, part_of, promote
from memplan.planner.formula.tape.tape import Node, Shape, Tape, Tensor
from memplan.planner.tables.chunked_loss import refuses_chunked_loss
from memplan.planner.tables.errors import UsageError

# trl 1.16 kernels/chunked_logprob.py TOKEN_CHUNK_SIZE, trainer/utils.py _CHUNKED_LOGPROB_CHUNK_SIZE
TOKEN_TILE, VOCABULARY_TILE = 4096, 32768


def log_probabilities(w: Context, given: Tensor, scored: int | None = None) -> Tensor:
    """TRL's fused output projection: logits in tiles of 4,096 tokens x 32,768 entries, made again in the
    backward, never whole; a log-probability for each token, or of each row's last `scored` ones.

    Saves the hidden states that have a label and a log-sum-exp per token; gradients of hidden states and of a
    trained head are summed in fp32 (trl 1.16 kernels/chunked_logprob.py ChunkedLogProbFunction).
    """
    t, spec = w.t, w.parameter_table.spec
    width = given.shape[-1]
    tokens = w.batch * (as_expr(w.sequence) - 1 if scored is None else scored)
    rows = (tokens, width)
    weight = w.weight(f"{spec.head_name}.weight")
    w_shape, w_dtype, weight_name, given_dtype = weight.shape, weight.dtype, weight.name, given.dtype
    dtype = w.auto or given.dtype
    if w.device.kind != "cpu" and (refused := refuses_chunked_loss(w.device.capability, dtype)):
        raise UsageError(refused)
    with t.inside("loss: "):
        if scored is not None:  # all but the last token, and of those a completion's
            given = part_of(t, given, (w.batch, as_expr(w.sequence) - 1, width))
        whole = given.shape
        labels = t.alloc("labels in use", (tokens,), "int64", "which positions are scored")
        hidden = t.op(
            "reshape",
            (given,),
            rows,
            given.dtype,
            alias=given if w.single else None,
            saves=() if t.offload is None else (t.alloc("scored positions", whole[:2], "bool", "an index"),),
            name="hidden states with a label",
            backward=lambda t, n, g: [
                t.alloc("gradient of the last hidden states", whole, g.dtype, "zeros around the scored rows")
            ],
        )

        def tiles(t: Tape, keeps_left: bool) -> list[Tensor | None]:
            """Every tile in turn, and what is still referred to after the last: an operand lives until the
            next one has been made.
            """
            first, further = (
                minimum(tokens, TOKEN_TILE),
                minimum(maximum(tokens, TOKEN_TILE) - TOKEN_TILE, TOKEN_TILE),
            )
            buffer = t.alloc("tile of logits", (first, VOCABULARY_TILE), dtype, "one buffer for every tile")
            left = right = kept = None
            for height, count in (
                (first, 1),
                (further, exceeds(tokens, TOKEN_TILE)),
            ):  # one more stands for all further tiles of tokens
                if given_dtype != dtype:
                    left = t.alloc(
                        "tile of the hidden states", (height, width), dtype, "cast to the product's dtype"
                    )
                for start in range(0, spec.vocab, VOCABULARY_TILE):
                    if w_dtype != dtype:
                        shape = (min(VOCABULARY_TILE, spec.vocab - start), width)
                        right = t.alloc(
                            "tile of the head", (*shape, count), dtype, "cast to the product's dtype"
                        )
                    kept = left if keeps_left else None
            return [buffer, right, kept]

        def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
            wide = [
                t.alloc("gradient of the hidden states in fp32", rows, "float32", "summed over the tiles")
                if node.needs(0)
                else None
            ]
            wide.append(
                t.alloc(f"{weight_name} gradient in fp32", w_shape, "float32", "summed over the tiles")
                if node.needs(1)
                else None
            )
            held = tiles(t, keeps_left=True)
            narrow: list[Tensor | None] = [None, None]
            if wide[0] is not None:
                narrow[0] = cast(t, wide[0], given_dtype)
            if wide[1] is not None:
                narrow[1] = cast(t, wide[1], w_dtype)
            del held
            return narrow

        statistics = [
            t.alloc("running statistics", (tokens,), "float32", "online log-sum-exp") for _ in range(7)
        ]
        held = tiles(t, keeps_left=False)
        log_z = t.alloc("log-sum-exp of the logits", (tokens,), "float32", "one per token")
        scores = t.op(
            "chunked loss",
            (hidden, weight),
            (tokens,),
            "float32",
            saves=(hidden, log_z, labels),
            backward=backward,
            name="log-probabilities",
        )
        del held, statistics
        return scores


def chunked_loss(w: Context, given: Tensor) -> Tensor:
    """The mean of the log-probabilities that the fused projection gives."""
    scores = log_probabilities(w, given)
    tokens = scores.shape
    with w.t.inside("loss: "):
        return w.t.op(
            "sum",
            (scores,),
            (),
            "float32",
            name="loss",
            backward=lambda t, n, g: [Tensor(g.buffer, tokens, "float32")],
        )


def fused_loss(w: Context, given: Tensor) -> Tensor:
    """Liger's fused projection and loss: the gradients are made in the forward, a chunk of logits at a time,
    and saved.

    N = B x S; a chunk has next_power_of_2(ceil(N / ceil(V / H))) rows, at most N. A trained head's gradient
    is summed beside it (liger-kernel 0.8.5 ops/fused_linear_cross_entropy.py,
    transformers/model/loss_utils.py).
    """
    t, spec = w.t, w.parameter_table.spec
    tokens, width = w.batch * w.sequence, spec.head.in_features
    rows = minimum(tokens, power_of_two(ceil_div(tokens, -(-spec.vocab // width))))
    names = [f"{spec.head_name}.weight", *([f"{spec.head_name}.bias"] if spec.head_bias else [])]
    inputs = (given, *(w.weight(name) for name in names))
    with t.inside("loss: "):
        shifted = t.alloc("shifted labels", (w.batch, w.sequence), "int64", "labels moved by one")
        made = [
            t.alloc(
                "gradient of the hidden states",
                given.shape,
                given.dtype,
                "made in the forward, chunk by chunk",
            )
        ]
        for p in inputs[1:]:
            if p.requires_grad:
                made.append(
                    t.alloc(
                        f"{p.name} gradient", p.shape, p.dtype, "made in the forward, summed over the chunks"
                    )
                )
        losses = t.alloc("losses", (tokens,), "float32", "one per token")
        _chunk(w, inputs, rows, 1)
        _chunk(w, inputs, rows, minimum(tokens - rows, 1))  # stands for all further ones
        shapes = [(p.shape, p.dtype, p.requires_grad) for p in inputs]

        def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
            saved = iter(node.held)
            return [
                Tensor(next(saved), shape, dtype) if i == 0 or wanted else None
                for i, (shape, dtype, wanted) in enumerate(shapes)
            ]

        loss = t.op("fused loss", inputs, (), "float32", saves=made, backward=backward, name="loss")
        del shifted, losses
        return loss


def _chunk(w: Context, inputs: Sequence[Tensor], rows: Sized, times: Sized) -> None:
    """One chunk: logits, their gradient's products with the head and, for a trained head, with the chunk.

    `inputs`: hidden states, head and its bias if any; `times`: 1, or 0 where there is no such chunk. Under
    autocast the transposed head is copied in every chunk, and what the second product makes of a trained
    fp32 head stays in autocast's cache (ATen/autocast_mode.cpp cached_cast: leaves, not views).
    """
    t, (given, weight, *bias) = w.t, inputs
    dtype, (vocab, width) = w.auto or given.dtype, weight.shape

    def made(name: str, shape: Shape, dtype: str, why: str) -> Tensor:
        return t.alloc(name, (*shape, times), dtype, why)

    lower = [
        made(f"{dtype} copy of {name}", shape, dtype, "autocast's, made again in every chunk")
        for name, shape, wide in (
            ("a chunk", (rows, width), given.dtype),
            ("the head", weight.shape, weight.dtype),
        )
        if wide != dtype
    ]
    logits = made("chunk of logits", (rows, vocab), dtype, "one chunk at a time")
    lower.clear()
    if bias:
        wide = promote(dtype, bias[0].dtype)
        logits = made("chunk of logits with bias", (rows, vocab), wide, "a sum, in the wider dtype")
    if logits.dtype != dtype:
        lower = [made(f"{dtype} copy of logits", (rows, vocab), dtype, "autocast's, for the product")]
    with t.no_grad():
        lower.append(w.autocast_low(weight))
    product = made("gradient of a chunk", (rows, width), dtype, "logits' gradient @ weight")
    lower.clear()
    del product
    if weight.requires_grad:
        if given.dtype != logits.dtype:
            lower = [made(f"{logits.dtype} copy of a chunk", (rows, width), logits.dtype, "for the product")]
        if weight.dtype != logits.dtype:  # else the product is added by its own kernel (addmm)
            why = "a chunk's part of the head's gradient, before it is added (torch.mm(...).float())"
            lower.append(made("product of a chunk", weight.shape, dtype, why))
            lower.append(made("product of a chunk in fp32", weight.shape, "float32", why))
