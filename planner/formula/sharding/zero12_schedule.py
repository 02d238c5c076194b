"""ZeRO's stages 1 and 2 on the tape: the reduce bucket that gradients pass through, and this rank's partition
of them.

Read in deepspeed 0.19.8 runtime/zero/stage_1_and_2.py: `setup_buckets`,
`reduce_independent_p_g_buckets_and_remove_grads`, `copy_grads_in_partition`, `reduce_gradients`, `step`. The
bucket comes with the first gradient and goes after the backward. Stage 2 copies each gradient into it and
drops it; stage 1 keeps all whole until the backward is done. The partition's gradients are whole tensors:
those that lie across its beginning count in full.
"""

from __future__ import annotations

from collections import Counter

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.sharding.plan import StrategyHooks
from memplan.planner.formula.sharding.zero import ZeroPlan
from memplan.planner.formula.symbolic.expr import Expr, const, total
from memplan.planner.formula.tape.tape import Tensor
from memplan.planner.tables.components import Component


class Zero12Schedule(StrategyHooks):
    """Stages 1 and 2."""

    accumulates = False
    frees = True

    def __init__(self, rank: ZeroPlan, walk: Context) -> None:
        self.rank, self.w, self.t = rank, walk, walk.t
        self.setup, self.dtype = rank.setup, rank.dtype
        self.size = rank.bucket("zero_reduce_bucket")
        self.bucket: list[Tensor] = []
        self.own: Tensor | None = None
        self.large: Tensor | None = None
        self.before: list[Tensor] = []  # gradients of earlier micro-batches
        self.names = {t.name for t in rank.seen.trained}

    def accumulated(self) -> None:
        """The gradients that accumulate in a step of several micro-batches."""
        if self.rank.stage == 1:
            for stored in self.rank.seen.trained:
                made = self._alloc(
                    f"{stored.name} gradient",
                    stored.shape,
                    stored.dtype,
                    "accumulated over micro-batches",
                    "gradients",
                )
                self.t.log[-1] = (-1, {len(self.t.infos) - 1: stored.count})
                self.before.append(made)
            self.w.accumulated = True
        elif not self.rank.offloaded:
            partition = total(t.elements for t in self.rank.partitions())
            self.own = self._alloc(
                "partition of gradients", (partition,), self.dtype, "of the micro-batches before", "gradients"
            )

    def begin_backward(self) -> None:
        """Meet each gradient as it comes."""
        self.t.taken = self.taken

    def taken(self, leaf: Tensor) -> None:
        """A gradient has come: the first makes the bucket, and in stage 2 each is copied into it."""
        if leaf.name not in self.names:
            return
        self.large = None
        if not self.bucket:
            why = "gradients on their way to be reduced: zero_reduce_bucket"
            self.bucket = [
                self._alloc("reduce bucket", (self.size,), self.dtype, why)
                for _ in range(2 if self.rank.overlaps else 1)
            ]
            if self.rank.stage == 2:
                self._partition()
        if self.rank.stage == 2:
            self.drop(leaf)

    def drop(self, leaf: Tensor) -> None:
        """The gradient is a view of the bucket now; one that is larger than it stays until it is reduced,
        with the next one.
        """
        elements = self.elements(leaf)
        if elements > self.size:
            self.large = leaf.grad
        leaf.grad = Tensor(None, leaf.shape, leaf.dtype)

    def elements(self, leaf: Tensor) -> int:
        """Elements of a leaf's gradient."""
        return self.t.size(leaf.shape, "int8").evaluate({"R": self.setup.rank})

    def end_backward(self) -> None:
        """Stage 1 partitions the gradients here; the buckets go."""
        self.t.taken = None
        if self.rank.stage == 1:
            self._partition()
        self.large, self.bucket = None, []
        self.forget()

    def forget(self) -> None:
        """Whole gradients go, those of repeated layers too."""
        for leaf in self.w.params.values():
            leaf.grad = None
        left: Counter[int] = Counter()
        for index, change in self.t.log:
            left.update({index: change} if index >= 0 else change)
        wholes = {f"{name} gradient" for name in self.names}
        self.t.log.append(
            (
                -1,
                {
                    index: -count
                    for index, count in left.items()
                    if count and self.t.infos[index].name in wholes
                },
            )
        )

    def begin_optimizer(self) -> list[Tensor]:
        """The partition flattened once more, then in fp32, which is the gradient that the optimizer sees."""
        if self.rank.offloaded:
            self.own = None
            return []
        sizes = [t.elements for t in self.rank.partitions()]
        return self.widened(
            max(sizes, key=lambda size: size.evaluate({"R": self.setup.rank})), len(sizes) > 1
        )

    def widened(self, elements: Expr, keep: bool) -> list[Tensor]:
        """fp32 gradients of a group; the partition stays while another group has views of it."""
        flat = (
            self._alloc("flat gradients", (elements,), self.dtype, "of one group of the partition")
            if self.dtype != "float32"
            else None
        )
        wide = self._alloc(
            "fp32 gradients", (elements,), "float32", "of one group of the partition", "gradients"
        )
        del flat
        own, self.own = self.own, None
        return [wide, own] if keep and own is not None else [wide]

    def _partition(self) -> None:
        if not self.rank.offloaded:
            size = total(t.elements for t in self.rank.partitions()) + self._across()
            self.own = self._alloc(
                "gradients of this rank's partition", (size,), self.dtype, "whole tensors", "gradients"
            )

    def _across(self) -> Expr:
        """Elements of the tensor that lies across the beginning of the last partition, as far as they are
        another rank's.
        """
        more = 0
        for (_, group), flat in zip(self.rank.groups(), self.rank.partitions(), strict=True):
            sizes = sorted(
                (
                    (place, order, self.rank.count(t))
                    for order, t in enumerate(group)
                    for place in self.rank.places(t)
                )
            )
            wanted = flat.elements.evaluate({"R": self.setup.rank})
            padding = wanted * self.rank.ranks - sum(size for _, _, size in sizes)
            held = 0
            while sizes and held + padding < wanted:
                held += sizes.pop()[2]
            more += held + padding - wanted
        return const(more)

    def _alloc(
        self,
        name: str,
        shape: tuple[Expr | int, ...],
        dtype: str,
        why: str,
        component: Component = "temporaries",
    ) -> Tensor:
        scope, self.t.scope = self.t.scope, ""
        made = self.t.alloc(name, shape, dtype, why, component)
        self.t.scope = scope
        return made
