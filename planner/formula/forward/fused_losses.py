"""From the last hidden states to the loss without whole logits: TRL's tiles and Liger's chunks.

N tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

from memplan.planner.formula.forward.context import Walk
from memplan.planner.formula.symbolic.expr import ceil_div, exceeds, maximum, minimum, power_of_two
from memplan.planner.formula.tape.ops import Grads, cast
from memplan.planner.formula.tape.tape import Node, Shape, Tape, Tensor

# trl 1.16 kernels/chunked_logprob.py TOKEN_CHUNK_SIZE, trainer/utils.py _CHUNKED_LOGPROB_CHUNK_SIZE
TOKEN_TILE, VOCABULARY_TILE = 4096, 32768


def chunked_loss(w: Walk, given: Tensor) -> Tensor:
    """TRL's fused output projection: logits in tiles of 4,096 tokens x 32,768 entries, made again in the
    backward, never whole.

    Saves the hidden states that have a label and a log-sum-exp per token; gradients of hidden states and of a
    trained head are summed in fp32 (trl 1.16 kernels/chunked_logprob.py ChunkedLogProbFunction).
    """
    t, spec = w.t, w.inventory.spec
    width = given.shape[-1]
    tokens = w.batch * (w.sequence - 1)
    rows = (tokens, width)
    weight = w.weight(f"{spec.head_name}.weight")
    w_shape, w_dtype, weight_name, given_dtype = weight.shape, weight.dtype, weight.name, given.dtype
    dtype = w.auto or given.dtype
    with t.inside("loss: "):
        whole = given.shape
        labels = t.alloc("labels in use", (tokens,), "int64", "which positions are scored")
        hidden = t.op(
            "reshape",
            (given,),
            rows,
            given.dtype,
            alias=given if w.single else None,
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
        return t.op(
            "sum",
            (scores,),
            (),
            "float32",
            name="loss",
            backward=lambda t, n, g: [Tensor(g.buffer, (tokens,), "float32")],
        )


def fused_loss(w: Walk, given: Tensor) -> Tensor:
    """Liger's fused projection and loss: the gradients are made in the forward, a chunk of logits at a time,
    and saved.

    N = B x S; a chunk has next_power_of_2(ceil(N / ceil(V / H))) rows, at most N. A trained head's gradient
    is summed beside it (liger-kernel 0.8.5 ops/fused_linear_cross_entropy.py,
    transformers/model/loss_utils.py).
    """
    t, spec = w.t, w.inventory.spec
    tokens, width = w.batch * w.sequence, spec.head.in_features
    rows = minimum(tokens, power_of_two(ceil_div(tokens, -(-spec.vocab // width))))
    names = [f"{spec.head_name}.weight", *([f"{spec.head_name}.bias"] if spec.head_bias else [])]
    inputs = (given, *(w.weight(name) for name in names))
    dtype = w.auto or given.dtype
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
        lower = [
            t.alloc(f"{dtype} copy of {name}", shape, dtype, "autocast's, made again in every chunk")
            for name, shape, wide in (
                ("a chunk", (rows, width), given.dtype),
                ("the head", inputs[1].shape, inputs[1].dtype),
            )
            if wide != dtype
        ]
        logits = t.alloc("chunk of logits", (rows, spec.vocab), dtype, "one chunk at a time")
        del lower
        if inputs[1].dtype != dtype:
            lower = [
                t.alloc(
                    f"{dtype} copy of the head",
                    inputs[1].shape,
                    dtype,
                    "autocast's, made again in every chunk",
                )
            ]
        product = t.alloc("gradient of a chunk", (rows, width), dtype, "logits' gradient @ weight")
        lower = []
        del product
        if inputs[1].requires_grad and (inputs[1].dtype != dtype or w.device.kind == "cpu"):
            lower = _product_beside(t, inputs[1], (rows, width), given.dtype, dtype)
        del logits, lower
        shapes = [(p.shape, p.dtype, p.requires_grad) for p in inputs]

        def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
            saved = iter(node.saved)
            return [
                Tensor(next(saved), shape, dtype) if i == 0 or wanted else None
                for i, (shape, dtype, wanted) in enumerate(shapes)
            ]

        loss = t.op("fused loss", inputs, (), "float32", saves=made, backward=backward, name="loss")
        del shifted, losses
        return loss


def _product_beside(t: Tape, weight: Tensor, chunk: Shape, given: str, dtype: str) -> list[Tensor]:
    """What a chunk's part of the head's gradient needs where it cannot be added by the product itself: the
    product (V x H) in the logits' dtype and its fp32 copy (liger-kernel 0.8.5
    ops/fused_linear_cross_entropy.py: grad_weight += torch.mm(...).float()).
    """
    why = "a chunk's part of the head's gradient"
    made = [t.alloc(f"{dtype} copy of a chunk", chunk, dtype, why)] if given != dtype else []
    made.append(t.alloc("product of a chunk", weight.shape, dtype, why))
    if dtype != "float32":
        made.append(t.alloc("product of a chunk in fp32", weight.shape, "float32", why))
    return made


WITHOUT_LOGITS: dict[str, Callable[[Walk, Tensor], Tensor]] = {"chunked": chunked_loss, "fused": fused_loss}
