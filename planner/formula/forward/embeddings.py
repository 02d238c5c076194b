"""An embedding for each text of an example, and the in-batch contrastive loss of them; what
`planner/run/embeddings.py` runs, where its sources are named.

B examples, T texts of one, M = B x (T - 1) candidates, S tokens of a text, H hidden size. The trainer reads
the first text of every example, then all others at once.
"""

from __future__ import annotations

from functools import partial

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.decoder import Decoder, Guard
from memplan.planner.formula.sharding.plan import StrategyHooks
from memplan.planner.formula.symbolic.expr import Sized
from memplan.planner.formula.tape.ops import Grads, cast, unary
from memplan.planner.formula.tape.tape import Node, Shape, Tape, Tensor

Kept = list[Tensor]
"""What a dictionary of features, or a name, holds until the loss is there."""


def contrastive_loss(w: Context, guard: Guard, batch: list[Tensor], count: Sized) -> Tensor:
    """The loss of `count` examples: `batch` has ids and mask of each text in turn."""
    if w.setup.mini_batch is not None:
        return _cached_loss(w, guard, batch, count)
    t, texts = w.t, len(batch) // 2
    kept: Kept = []
    queries = embedded(w, guard, batch[0], kept)
    if texts == 2:
        found = embedded(w, guard, batch[2], kept)
    else:
        found = _together(w, guard, texts - 1)
    loss = ranked(w, queries, _copied(t, found, "candidates"), w.batch)
    del kept
    return t.op(
        "mean", (loss,), (), loss.dtype, name="loss", backward=lambda t, n, g: [Tensor(g.buffer, (), g.dtype)]
    )


def _cached_loss(w: Context, guard: Guard, batch: list[Tensor], count: Sized) -> Tensor:
    """The loss of `count` examples whose texts are embedded a mini-batch at a time, without a graph; of each
    mini-batch's queries the loss goes back to the embeddings alone (cached_multiple_negatives_ranking.py
    calculate_loss). `w` has the rows of a mini-batch.
    """
    t = w.t
    with t.no_grad():
        found = embedded(w, guard, _rows(w, batch[0]), [])
    width, dtype = found.shape[-1], found.dtype
    del found
    texts = [
        t.alloc("embeddings without a graph", (count, width), dtype, "of every example") for _ in batch[::2]
    ]
    for each in texts:
        each.requires_grad, each.name = True, "embeddings without a graph"
    joined = [_copied(t, each, "embeddings, joined") for each in texts]
    every = t.op(
        "cat",
        tuple(joined[1:]),
        (count * (len(texts) - 1), width),
        dtype,
        name="candidates",
        backward=lambda t, n, g: [Tensor(g.buffer, (count, width), g.dtype) for _ in texts[1:]],
    )
    loss = ranked(w, joined[0], every, w.batch)
    begun = t.alloc("gradient of the loss", (), "float32", "the one that a mini-batch starts from")
    t.backward(loss, begun)
    del loss, joined, every
    w.again = partial(_again, w, guard, batch[0], [each.grad for each in texts])
    return t.alloc("loss", (), "float32", "of all mini-batches")


def _again(w: Context, guard: Guard, ids: Tensor, gradients: list[Tensor | None]) -> None:
    """The backward of that loss: a mini-batch is embedded once more, with a graph, and given the gradient of
    its embeddings; then another, which finds gradients of the weights (base/losses/gradcache.py).
    """
    t = w.t

    def cached(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [t.alloc("gradient of the embeddings", shape, "float32", "as was cached")]

    for _ in range(2):  # whatever follows is as the second
        pooled = embedded(w, guard, _rows(w, ids), [])
        flat = cast(t, pooled, "float32", "embeddings in fp32")
        shape = flat.shape
        surrogate = t.op(
            "dot",
            (flat,),
            (),
            "float32",
            name="surrogate loss",
            backward=cached,
        )
        del pooled, flat
        t.backward(surrogate, t.alloc("gradient of the loss", (), "float32", "that of the whole"))
        del surrogate
    gradients.clear()


def _rows(w: Context, ids: Tensor) -> Tensor:
    """The first rows of a text's ids: a view."""
    return Tensor(ids.buffer, (w.batch, w.sequence), ids.dtype)


def _together(w: Context, guard: Guard, texts: int) -> Tensor:
    """Several texts of each example in one forward (base/losses/merged_forward.py embed_columns)."""
    t, rows = w.t, w.batch * texts
    other = Context(t, w.setup, w.parameter_table, w.device, rows, w.sequence, False, {})
    other.params, other.accumulated = w.params, w.accumulated
    merged = [
        t.alloc(name, (rows, w.sequence), "int64", "of all but the first text") for name in ("ids", "mask")
    ]
    found = embedded(other, guard._replace(single=False), merged[0], [])
    shape = found.shape

    def stacked(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [t.alloc("gradient of the embeddings", shape, grad.dtype, "those of each text, stacked")]

    return t.op("unbind", (found,), shape, found.dtype, alias=found, backward=stacked)


def embedded(w: Context, guard: Guard, ids: Tensor, kept: Kept) -> Tensor:
    """(rows, H): the last token's state of each row, in fp32 where accelerate converts; `kept`: what stays of
    it beside.
    """
    t = w.t
    decoder = Decoder(w, guard, StrategyHooks(), ids)
    hidden = decoder.run()
    kept.append(hidden)
    pooled = _last_token(w, hidden)
    t.forget_casts()
    if w.setup.outputs_fp32 and w.auto is not None:
        wide = cast(t, hidden, "float32", "fp32 copy of the token embeddings")
        pooled = cast(t, pooled, "float32", "fp32 copy of the embeddings")
        del wide
    decoder.outside.clear()
    return pooled


def _last_token(w: Context, hidden: Tensor) -> Tensor:
    """The state of each row's last real token (sentence_transformer/modules/pooling.py lasttoken): states
    times the mask, and one place of each row of them.
    """
    t, shape, rows = w.t, hidden.shape, (w.batch,)
    with t.inside("pooling: "):
        flipped = t.alloc("flipped mask", (w.batch, w.sequence), "int64", "to find each row's last token")
        found = [t.alloc(name, rows, "int64", "one per row") for name in ("values", "indices", "places")]
        del flipped
        real = t.alloc("mask of the states", shape, hidden.dtype, "expanded, in the states' dtype")

        def masked(t: Tape, node: Node, grad: Tensor) -> Grads:
            return [t.alloc("gradient of the states", shape, grad.dtype, "times the mask")]

        def spread(t: Tape, node: Node, grad: Tensor) -> Grads:
            return [t.alloc("gradient of the masked states", shape, grad.dtype, "zeros but for last tokens")]

        product = t.op(
            "mul", (hidden,), shape, hidden.dtype, saves=(real,), backward=masked, name="masked states"
        )
        return t.op(
            "gather",
            (product,),
            (w.batch, shape[-1]),
            hidden.dtype,
            saves=(product, found[2]),  # torch 2.14 derivatives.yaml: gather_backward asks it for its size
            backward=spread,
            name="last token's states",
        )


def ranked(w: Context, queries: Tensor, every: Tensor, count: Sized) -> Tensor:
    """(count,): a loss for each query, whose own text is one of all candidates."""
    t, width = w.t, queries.shape[-1]
    with t.inside("loss: "):
        places = t.alloc("places", (count,), "int64", "of the queries")
        chosen = _indexed(t, queries, (count, width), places, "queries")
        own = t.alloc("their own texts", (count, width), queries.dtype, "a name that nothing reads")
        scores = _cosine(t, chosen, every, (count, every.shape[0]))
        scores = unary(t, "scale", scores, "scores")
        right = _indexed(t, scores, (count,), places, "scores of the own texts")
        whole = _copied(t, scores, "scores, joined")
        log_z = _log_sum(t, whole)
        del own
        shape = right.shape
        return t.op(
            "sub",
            (right, log_z),
            shape,
            right.dtype,
            name="losses",
            backward=lambda t, n, g: [Tensor(g.buffer, shape, g.dtype)] * 2,
        )


def _copied(t: Tape, x: Tensor, name: str) -> Tensor:
    return t.op(
        "cat",
        (x,),
        x.shape,
        x.dtype,
        name=name,
        backward=lambda t, n, g: [Tensor(g.buffer, g.shape, g.dtype)],
    )


def _indexed(t: Tape, x: Tensor, shape: Shape, places: Tensor, name: str) -> Tensor:
    whole = x.shape

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [t.alloc(f"gradient of {name}", whole, grad.dtype, "zeros, then added to")]

    return t.op("index", (x,), shape, x.dtype, saves=(places,), backward=backward, name=name)


def _cosine(t: Tape, a: Tensor, b: Tensor, shape: Shape) -> Tensor:
    """Products of normalized rows, each with each."""
    left, right = (_normalized(t, each) for each in (a, b))
    sizes = [(each.shape, each.dtype) for each in (left, right)]

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        return [t.alloc("gradient of normalized rows", *each, "a product") for each in sizes]

    return t.op(
        "matmul", (left, right), shape, left.dtype, saves=(left, right), backward=backward, name="cosines"
    )


def _normalized(t: Tape, x: Tensor) -> Tensor:
    shape = x.shape
    norm = t.alloc("norms of rows", (shape[0], 1), x.dtype, "one per row")

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        beside = t.alloc("gradient through the norms", shape, grad.dtype, "one for each element")
        made = t.alloc("gradient of rows", shape, grad.dtype, "of both ways")
        del beside
        return [made]

    return t.op("normalize", (x,), shape, x.dtype, saves=(x, norm), backward=backward, name="normalized rows")


def _log_sum(t: Tape, scores: Tensor) -> Tensor:
    """(B,): logsumexp, whose forward and backward take the exponentials of all scores."""
    shape, rows = scores.shape, (scores.shape[0],)
    wide = t.alloc("exponentials", shape, scores.dtype, "of scores less the largest")
    del wide

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        wide = t.alloc("exponentials", shape, grad.dtype, "of scores less their sum's logarithm")
        made = t.alloc("gradient of the scores", shape, grad.dtype, "probabilities")
        del wide
        return [made]

    return t.op(
        "logsumexp",
        (scores,),
        rows,
        scores.dtype,
        saves=(scores,),
        saves_output=True,
        backward=backward,
        name="log-sum-exp",
    )
