"""A replica under DistributedDataParallel: everything that one GPU holds, and the reducer's buckets.

Read in torch 2.13 csrc/distributed/c10d/reducer.cpp, which makes the buckets as the model is wrapped and asks
for no number of ranks: `initialize_buckets`, `mark_variable_ready_dense`. Whether a stack wraps at all is
`sharding.wraps`.
"""

from __future__ import annotations

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.rows import SymbolicRow
from memplan.planner.formula.sharding.plan import Loading, ShardingPlan, StrategyHooks
from memplan.planner.formula.symbolic.expr import product
from memplan.planner.formula.tape.tape import Tensor
from memplan.planner.tables.dtypes import itemsize


class DdpHooks(StrategyHooks):
    """gradient_as_bucket_view: a gradient is copied into its bucket and becomes a view of it, and its own
    bytes go.
    """

    def __init__(self, rank: ShardingPlan, walk: Context) -> None:
        if rank.setup.gradient_as_bucket_view:
            self.names = {t.name for t in walk.parameter_table.trained}
            walk.t.taken = self._viewed

    def _viewed(self, leaf: Tensor) -> None:
        if leaf.name in self.names:
            leaf.grad = Tensor(None, leaf.shape, leaf.dtype)


class DdpPlan(ShardingPlan):
    """One of N equal ranks, which average their gradients."""

    def resident(self) -> list[SymbolicRow]:
        """What stays through the step: one GPU's tensors and the gradient buckets."""
        return [*super().resident(), *self.buckets()]

    def loading(self) -> Loading:
        """The buckets are made when the model is wrapped, before the first step."""
        buckets = self.buckets()
        return {
            name: [[*rows, *(buckets if rows is states[0] else ())] for rows in states]
            for name, states in super().loading().items()
        }

    def buckets(self) -> list[SymbolicRow]:
        """All gradients once more, whatever bucket_cap_mb cuts them into."""
        why = "DDP copies gradients into buckets for the all-reduce"
        return [
            SymbolicRow(
                f"{t.name} bucket",
                t.shape,
                t.dtype,
                t.count,
                product((*t.shape, itemsize(t.dtype), t.count)),
                "temporaries",
                why,
            )
            for t in self.stored.trained
        ]
