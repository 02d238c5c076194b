"""A replica under DistributedDataParallel: everything that one GPU holds, and the reducer's buckets.

Read in torch 2.13 csrc/distributed/c10d/reducer.cpp, which makes the buckets as the model is wrapped and asks
for no number of ranks: `initialize_buckets`, `compute_bucket_assignment_by_size`, `rebuild_buckets`,
`broadcast_coalesced`. Whether a stack wraps at all is `sharding.wraps`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from operator import itemgetter

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.replay.events import Events
from memplan.planner.formula.replay.orders import Each, in_order
from memplan.planner.formula.resident.parameter_spec import ParameterSpec, packed_bytes
from memplan.planner.formula.rows import SymbolicRow
from memplan.planner.formula.sharding.plan import Bytes, Loading, ShardingPlan, StrategyHooks
from memplan.planner.formula.symbolic.expr import product
from memplan.planner.formula.tape.tape import Tensor
from memplan.planner.tables.dtypes import itemsize
from memplan.planner.tables.methods import METHODS

BROADCAST = 250 * 2**20  # bytes of a flat copy by which ranks get one model (nn/parallel/distributed.py)
IN_FLIGHT = 2  # flat copies at once (reducer.cpp broadcast_coalesced)
FIRST, OTHERS = 2**20, 25 * 2**20  # bytes: _DEFAULT_FIRST_BUCKET_BYTES, bucket_cap_mb


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

    # ---- as events -----------------------------------------------------------------------------------------

    def searches(self) -> bool:
        """Whether DDP looks for parameters without a gradient, and so keeps its first buckets: the Trainer
        asks for it where nothing is checkpointed, and with PEFT's models, which are no PreTrainedModel
        (transformers 5.24 trainer.py _build_accelerator_args).
        """
        adapters = METHODS[self.setup.method].trains == "adapter"
        return self.setup.loop.prepares and (adapters or self.setup.checkpointing == "none")

    def wrap(self, out: Events, rank: int) -> list[int]:
        """The model is sent to all ranks in flat copies, then the buckets are made: one of each dtype, where
        the order in which gradients come is waited for.
        """
        flats: list[int] = []
        base = self._ordered(self.stored.base)
        last = {layer: place for place, (_, layer) in enumerate(base)}
        beside = self._ordered(self.stored.all[len(self.stored.base) :])  # each layer's behind its own
        places = [*enumerate(base), *((last.get(each[1], len(base)), each) for each in beside)]
        every = [each for _, each in sorted(places, key=itemgetter(0))]
        for count, nbytes in _groups(self._bytes(every, rank), (BROADCAST,)):
            if len(flats) == IN_FLIGHT:
                out.free(flats.pop(0))
            if count > 1:  # one tensor alone is sent as it lies
                flats.append(out.alloc(nbytes))
        out.free(*flats)
        limits = (FIRST, OTHERS) if self.searches() else (1 << 62,)
        groups = _groups(self._bytes(self._ordered(self.stored.trained), rank), limits)
        return [out.alloc(nbytes) for _, nbytes in reversed(groups)]

    def races(self) -> bool:
        """The work that reduced the first buckets holds them until a thread that looks every 100 ms has seen
        that it is done, and then until the next one begins (ProcessGroupNCCL.cpp shelvesToUnstash_).
        """
        return not self.searches()

    def regroup(
        self, out: Events, rank: int, wrapped: Sequence[int], gradients: Sequence[Bytes], *, late: bool
    ) -> int:
        """The buckets come again in the order in which gradients came (`_rebuild_buckets`). The first ones
        are gone by then, or go when one of these is reduced.
        """
        if self.searches():
            return 0
        if not late:
            out.free(*wrapped)
        order = gradients or self._bytes(self._ordered(self.stored.trained)[::-1], rank)
        groups = _groups(order, (FIRST, OTHERS))
        for _, nbytes in groups:
            out.alloc(nbytes)
        return groups[0][0] if late else 0

    def _ordered(self, tensors: Sequence[ParameterSpec]) -> list[Each]:
        """Every tensor, module by module."""
        return in_order([(t, self.each_layer(t)) for t in tensors])

    @staticmethod
    def _bytes(tensors: Iterable[Each], rank: int) -> list[Bytes]:
        return [
            (each.dtype, packed_bytes(each.elements, each.dtype).evaluate({"R": rank})) for each, _ in tensors
        ]


def _groups(tensors: Iterable[Bytes], limits: Sequence[int]) -> list[tuple[int, int]]:
    """`compute_bucket_assignment_by_size`: tensors of one dtype in a row until they reach a limit, the last
    limit from then on; (how many, bytes) of each group in the order of their first tensors.
    """
    groups: list[list[int]] = []
    filling: dict[str, list[int]] = {}
    passed: Counter[str] = Counter()
    for dtype, nbytes in tensors:
        group = filling.get(dtype)
        if group is None:
            groups.append(group := [0, 0])
            filling[dtype] = group
        group[0] += 1
        group[1] += nbytes
        if group[1] >= limits[min(passed[dtype], len(limits) - 1)]:
            passed[dtype] += 1
            del filling[dtype]
    return [(count, nbytes) for count, nbytes in groups]
