"""From the last hidden states to the loss: the output projection, logits and their copies, cross-entropy; in full or chunk by chunk.

V vocabulary. Sources: transformers 5.23 loss/loss_utils.py ForCausalLMLoss, accelerate 1.15 utils/operations.py convert_to_fp32,
torch 2.13 ATen/native/LossNLL.cpp, ATen/native/cuda/SoftMax.cu.
"""

from __future__ import annotations

from planner.expr import maximum
from planner.forward.linears import linear
from planner.forward.walk import Walk
from planner.tape.rules import Grads, cast, unary
from planner.tape.tape import Node, Tape, Tensor


def logits_and_loss(w: Walk, given: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (B, S, V) and the scalar loss of materialised logits."""
    logits = logits_of(w, given)
    return logits, causal_loss(w, logits)


def logits_of(w: Walk, given: Tensor) -> Tensor:
    t, spec = w.t, w.inventory.spec
    with t.inside("logits: "):
        logits = head(w, given)
        if spec.logit_softcap is not None:
            logits = unary(t, "scale", logits, "logits / softcap")
            logits = unary(t, "tanh", logits, "tanh of logits")
            logits = unary(t, "scale", logits, "capped logits")
        if spec.scaled_logits:
            logits = unary(t, "scale", logits, "scaled logits")
    if logits.buffer is not None:
        logits.buffer.info.component = "activations"
        logits.buffer.info.why = "the output of the model, alive as long as the loop holds it"
    return logits


def head(w: Walk, given: Tensor) -> Tensor:
    """lm_head, whose weight is the embedding's where they are tied."""
    return linear(w, w.inventory.spec.head, given)


def causal_loss(w: Walk, logits: Tensor) -> Tensor:
    """ForCausalLMLoss: logits in fp32, log-softmax (saved), negative log likelihood: 4 V bytes a token each, gradients too."""
    t = w.t
    with t.inside("loss: "):
        shifted = t.alloc("padded labels", (w.batch, w.sequence + 1), "int64", "labels with one more place")
        shifted = t.alloc("shifted labels", (w.batch, w.sequence), "int64", "labels moved by one")
        wide = cast(t, logits, "float32", "fp32 logits")
        probabilities = t.op(
            "log_softmax",
            (wide,),
            wide.shape,
            "float32",
            saves_output=True,
            name="log-softmax of the logits",
            backward=_same("gradient of the logits in fp32", "exp and sum of the incoming gradient"),
        )
        shape = wide.shape

        def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
            return [t.alloc("gradient of the log-softmax", shape, "float32", "zeros but for the labels' places")]

        weight = t.alloc("total weight", (), "float32", "how many labels count")
        return t.op("nll_loss", (probabilities,), (), "float32", saves=(probabilities, shifted, weight), backward=backward, name="loss")


def _same(name: str, why: str):  # type: ignore[no-untyped-def]
    return lambda t, node, grad: [t.alloc(name, grad.shape, grad.dtype, why)]


TOKEN_TILE, VOCABULARY_TILE = (
    4096,
    32768,
)  # trl 1.16 kernels/chunked_logprob.py TOKEN_CHUNK_SIZE, trainer/utils.py _CHUNKED_LOGPROB_CHUNK_SIZE


def chunked_loss(w: Walk, given: Tensor) -> Tensor:
    """TRL's fused output projection: logits in tiles of 4,096 tokens x 32,768 entries, made again in the backward, never whole.

    Saves the hidden states that have a label and a log-sum-exp per token; gradients of hidden states and of a trained head are summed
    in fp32 (trl 1.16 kernels/chunked_logprob.py ChunkedLogProbFunction).
    """
    t, spec = w.t, w.inventory.spec
    width = given.shape[-1]
    tokens = w.batch * (w.sequence - 1)
    rows = (tokens, width)
    weight = w.weight(f"{spec.head_name}.weight")
    w_shape, w_dtype, weight_name, given_dtype = weight.shape, weight.dtype, weight.name, given.dtype
    dtype = w.auto or given.dtype
    tile = (tokens + TOKEN_TILE - maximum(tokens, TOKEN_TILE), min(VOCABULARY_TILE, spec.vocab))
    with t.inside("loss: "):
        whole = given.shape
        labels = t.alloc("labels in use", (tokens,), "int64", "which positions are scored")
        hidden = t.op(
            "index",
            (given,),
            rows,
            given.dtype,
            saves=(labels,),
            name="hidden states with a label",
            backward=lambda t, n, g: [t.alloc("gradient of the last hidden states", whole, g.dtype, "zeros around the scored rows")],
        )

        def tiles(t: Tape) -> list[Tensor]:
            made = [t.alloc("tile of logits", tile, dtype, "one tile at a time")]
            if given_dtype != dtype:
                made.append(t.alloc("tile of the hidden states", (tile[0], width), dtype, "cast to the product's dtype"))
            if w_dtype != dtype:
                made.append(t.alloc("tile of the head", (tile[1], width), dtype, "cast to the product's dtype"))
            return made

        def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
            wide = [t.alloc("gradient of the hidden states in fp32", rows, "float32", "summed over the tiles") if node.needs(0) else None]
            wide.append(t.alloc(f"{weight_name} gradient in fp32", w_shape, "float32", "summed over the tiles") if node.needs(1) else None)
            held = tiles(t)
            narrow: list[Tensor | None] = [None, None]
            if wide[0] is not None:
                narrow[0] = cast(t, wide[0], given_dtype)
            if wide[1] is not None:
                narrow[1] = cast(t, wide[1], w_dtype)
            del held
            return narrow

        held = [*tiles(t), *(t.alloc("running statistics", (tokens,), "float32", "online log-sum-exp") for _ in range(7))]
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
        del held
        return t.op("sum", (scores,), (), "float32", name="loss", backward=lambda t, n, g: [Tensor(g.buffer, (tokens,), "float32")])
