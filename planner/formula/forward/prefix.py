"""Prefix tuning on the tape: keys and values of V virtual tokens, made before the model runs and joined
before every layer's own.

Sources: peft 0.21 peft_model.py get_prompt and PeftModelForCausalLM.forward; transformers 5.23 cache_utils.py
DynamicCache, DynamicLayer. V virtual tokens, L layers, K key-value heads, D head size.
"""

from __future__ import annotations

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.tape.layers import embedding
from memplan.planner.formula.tape.ops import Grads, cast, concatenate
from memplan.planner.formula.tape.tape import Node, Tape, Tensor


class Prefix:
    """The cache that holds the prefix: `made` for the layers to come, `joined` what those before have made of
    it.
    """

    def __init__(self, w: Context) -> None:
        self.w = w
        self.made: dict[int, list[Tensor]] = {}
        self.joined: list[Tensor] = []

    def make(self, name: str, counts: list[tuple[int, int]], heads: int, size: int, dtype: str) -> None:
        """Every layer's part of the table, (B, K, V, D) each of keys and values in the model's dtype;
        `counts`: layers of a block, and how often it is repeated.
        """
        t, w = self.w.t, self.w
        table = w.weight(name)
        tokens, wide = table.shape
        ids = t.alloc("virtual token ids", (w.batch, tokens), "int64", "0 to V - 1 for each row")
        whole = cast(t, embedding(t, ids, table, (w.batch, tokens, wide), "prefix"), dtype)
        del ids
        shape = whole.shape

        def joined(t: Tape, node: Node, grad: Tensor) -> Grads:
            made = t.alloc(
                "gradient of the prefix, layer by layer", shape, dtype, "the layers' gradients, concatenated"
            )
            back = t.alloc("gradient of the prefix", shape, dtype, "transposed back")
            del made
            return [back]

        whole = t.op("split", (whole,), shape, dtype, alias=whole, backward=joined)
        key = 0
        for layers, times in counts:
            with t.repeat(times):
                for _ in range(layers):
                    self.made[key] = self._layer(whole, (2, w.batch, heads, tokens, size))
                    key += 1

    def _layer(self, whole: Tensor, pair: tuple[object, ...]) -> list[Tensor]:
        """Keys and values of one layer: views of the table's rows, copied into the cache by its first
        update.
        """
        t, shape = self.w.t, whole.shape

        def sliced(t: Tape, node: Node, grad: Tensor) -> Grads:
            made = t.alloc("gradient of a layer's prefix", pair, grad.dtype, "in zeros of the layer's part")  # type: ignore[arg-type]
            return [Tensor(made.buffer, shape, made.dtype)]

        both = t.op("split", (whole,), pair, whole.dtype, alias=whole, backward=sliced)  # type: ignore[arg-type]

        def stacked(t: Tape, node: Node, grad: Tensor) -> Grads:
            return [Tensor(grad.buffer, pair, grad.dtype)]  # type: ignore[arg-type]

        return [
            t.op(
                "cat",
                (both,),
                pair[1:],  # type: ignore[arg-type]
                whole.dtype,
                backward=stacked,
                name=f"prefix {what}",
                why="the cache's first tokens",
            )
            for what in ("keys", "values")
        ]

    def join(self, key: int, own: list[Tensor]) -> list[Tensor]:
        """The layer's own keys and values behind the prefix's, which go as they are joined."""
        before = self.made.pop(key)
        for i, (what, x) in enumerate(zip(("keys", "values"), own, strict=True)):
            b, heads, length, size = x.shape
            self.joined.append(
                concatenate(
                    self.w.t, (before[i], x), (b, heads, length + self.w.past, size), f"{what} with prefix"
                )  # type: ignore[operator]
            )
            before[i] = x  # the prefix's own go
        return self.joined[-2:]

    def drop(self) -> None:
        """The cache of every layer goes."""
        with self.w.t.dropping():
            self.joined.clear()
