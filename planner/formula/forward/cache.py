"""The keys and values that generation keeps of each layer, from token to token."""

from __future__ import annotations

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.symbolic.expr import Sized, as_expr, minimum
from memplan.planner.formula.tape.tape import Tensor


def kept(before: Sized, window: int | None) -> Sized:
    """Of so many tokens those that a layer's cache has: a sliding window's last ones but one (transformers
    5.24 cache_utils.py DynamicSlidingWindowLayer).
    """
    return before if window is None else minimum(before, window - 1)


def cached(w: Context, keys: Tensor, values: Tensor, window: int | None = None) -> tuple[Tensor, Tensor]:
    """What an inference keeps of one layer: each is joined to those of the tokens before, which then go, or
    to an empty tensor of its own dtype (transformers 5.24 cache_utils.py DynamicLayer; 5.23 took the keys'
    dtype for both).
    """
    assert w.cache is not None
    for x, what in ((keys, "keys"), (values, "values")):
        before = w.earlier.pop(0) if w.earlier else None
        *front, length, size = x.shape
        shape = (*front, as_expr(length) + kept(w.before, window), size)
        made = w.t.op("cat", (x,), shape, x.dtype, name=f"cached {what}", why="the KV cache")
        del before
        if made.buffer is not None:
            made.buffer.info.component = "activations"
        w.cache.append(made)
    return w.cache[-2], w.cache[-1]
