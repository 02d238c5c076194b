"""From the last hidden states to the loss with whole logits: the output projection, logits and their copies,
cross-entropy; and as transformers 4.43 to 4.48 took them.

V vocabulary. Sources: transformers 5.23 loss/loss_utils.py ForCausalLMLoss, accelerate 1.15
utils/operations.py convert_to_fp32, torch 2.13 ATen/native/LossNLL.cpp, ATen/native/cuda/SoftMax.cu.
"""

from __future__ import annotations

from contextlib import nullcontext

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.linears import linear
from memplan.planner.formula.symbolic.expr import as_expr
from memplan.planner.formula.tape.ops import Grads, cast, unary
from memplan.planner.formula.tape.tape import Node, Tape, Tensor


def logits_of(w: Context, given: Tensor) -> Tensor:
    """The logits (B, S, V) of the last hidden states, softcap and scale applied."""
    t, spec = w.t, w.parameter_table.spec
    with t.inside("logits: "):
        logits = softcapped(w, head(w, given))
        if spec.scaled_logits:
            logits = unary(t, "scale", logits, "scaled logits")
        if w.setup.transformers == "4.43":  # 4.45.2 models/mistral/modeling_mistral.py: logits.float()
            logits = cast(t, logits, "float32", "logits in fp32")
    if logits.buffer is not None:
        logits.buffer.info.why = "the output of the model, alive as long as the loop holds it"
        logits.buffer.info.names_itself = True
    return logits


def head(w: Context, given: Tensor) -> Tensor:
    """lm_head, whose weight is the embedding's where they are tied."""
    with nullcontext() if w.t.offload is None else w.t.offload.spared():
        return linear(w, w.parameter_table.spec.head, given)


def softcapped(w: Context, logits: Tensor) -> Tensor:
    """The logits within the model's cap, where it has one."""
    if w.parameter_table.spec.logit_softcap is None:
        return logits
    logits = unary(w.t, "scale", logits, "logits / softcap")
    logits = unary(w.t, "tanh", logits, "tanh of logits")
    return unary(w.t, "scale", logits, "capped logits")


def causal_loss(w: Context, logits: Tensor) -> Tensor:
    """ForCausalLMLoss: logits in fp32, log-softmax (saved), negative log likelihood: 4 V bytes a token each,
    gradients too.
    """
    t = w.t
    if w.setup.transformers != "5":
        return _shifted_loss(w, logits)
    with t.inside("loss: "):
        shifted = t.alloc("padded labels", (w.batch, w.sequence + 1), "int64", "labels with one more place")
        shifted = t.alloc("shifted labels", (w.batch, w.sequence), "int64", "labels moved by one")
        wide = cast(t, logits, "float32", "fp32 logits")
        if "cross_entropy" in w.kernels:
            from memplan.planner.formula.tape.fused_kernels import cross_entropy

            return cross_entropy(t, wide, shifted)
        return log_likelihood(w, wide, shifted)


def _shifted_loss(w: Context, logits: Tensor) -> Tensor:
    """The loss up to transformers 4.48: of a contiguous copy of all logits but the last token's, beside the
    whole ones in fp32, which a name keeps until the loss is there (4.48.1 loss/loss_utils.py
    ForCausalLMLoss). The copy's gradient is put into zeros of the whole shape.
    """
    t, (batch, sequence, vocabulary) = w.t, logits.shape
    with t.inside("loss: "):
        wide = cast(t, logits, "float32", "fp32 logits")
        whole = wide.shape

        def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
            return [t.alloc("gradient of the whole logits", whole, grad.dtype, "zeros but for the shifted")]

        shifted = t.op(
            "shift",
            (wide,),
            (batch, as_expr(sequence) - 1, vocabulary),
            "float32",
            backward=backward,
            name="shifted logits",
            why="a contiguous copy of all logits but the last token's",
        )
        labels = t.alloc("shifted labels", (batch, as_expr(sequence) - 1), "int64", "labels but the first")
        return log_likelihood(w, shifted, labels)


def log_likelihood(w: Context, wide: Tensor, labels: Tensor | None) -> Tensor:
    """Log-softmax of logits in their dtype, which is saved, and the negative log likelihood. `labels`: None
    where they are those of the batch.
    """
    t, shape, dtype = w.t, wide.shape, wide.dtype
    probabilities = log_softmax(w, wide)

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [t.alloc("gradient of the log-softmax", shape, dtype, "zeros but for the labels' places")]

    weight = t.alloc("total weight", (), dtype, "how many labels count")
    return t.op(
        "nll_loss",
        (probabilities,),
        (),
        dtype,
        saves=(probabilities, *([] if labels is None else [labels]), weight),
        backward=backward,
        name="loss",
    )


def log_softmax(w: Context, wide: Tensor) -> Tensor:
    """The logarithms of probabilities, saved for the backward."""
    return w.t.op(
        "log_softmax",
        (wide,),
        wide.shape,
        wide.dtype,
        saves_output=True,
        name="log-softmax of the logits",
        backward=_same("gradient of the logits in fp32", "exp and sum of the incoming gradient"),
    )


def _same(name: str, why: str):  # type: ignore[no-untyped-def]
    return lambda t, node, grad: [t.alloc(name, grad.shape, grad.dtype, why)]
