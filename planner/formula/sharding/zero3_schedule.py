"""ZeRO's stage 3 on the tape: gathered parameters in each pass, gradients through the bucket that is always
there.

Read in deepspeed 0.19.8 runtime/zero/stage3.py: `__add_grad_to_ipg_bucket`, `__avg_scatter_grads` (its
reduce-scatter interleaves the bucket's gradients in a copy, runtime/comm/coalesced_collectives.py),
`_prepare_fp32_grad_for_sub_group`.
"""

from __future__ import annotations

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.sharding.zero import Zero3Plan
from memplan.planner.formula.sharding.zero3_prefetch import Fetched, Limits, Module, Parameter, fetched
from memplan.planner.formula.sharding.zero12_schedule import Zero12Schedule
from memplan.planner.formula.symbolic.expr import const
from memplan.planner.formula.tape.tape import Tensor


class Zero3Schedule(Zero12Schedule):
    """Stage 3."""

    def __init__(self, rank: Zero3Plan, walk: Context) -> None:
        super().__init__(rank, walk)
        self.rank: Zero3Plan = rank
        self.live: Tensor | None = None
        self.total = sum(rank.count(t) * t.count for t in rank.stored.trained)
        self.most = self._most()

    def accumulated(self) -> None:
        """Gradients of earlier micro-batches are in the flat buffer already."""

    def begin(self) -> None:
        """The most parameters gathered that a forward holds."""
        self.live = self._live(self.most.forward if self.t.grad_enabled else self.most.evaluation)

    def begin_backward(self) -> None:
        """Meet each gradient as it comes, with the most parameters gathered that a backward holds."""
        self.t.taken = self.taken
        self.live = None
        self.live = self._live(self.most.backward)

    def taken(self, leaf: Tensor) -> None:
        """A gradient has come: into the bucket, which is reduced when it is full."""
        if leaf.name not in self.names:
            return
        self.large = None
        if self.total > self.size:  # a full bucket is reduced on the way
            self._interleaved()
        self.drop(leaf)

    def end_backward(self) -> None:
        """Reduce what is left; the gathered parameters go."""
        self.t.taken = None
        self.large = None
        self._interleaved()
        self.forget()
        self.live = None

    def begin_optimizer(self) -> list[Tensor]:
        """One sub-group after the other: flattened, then in fp32."""
        if self.rank.offloaded:
            return []
        largest = max(t.elements.evaluate({"R": self.setup.rank}) for t in self.rank.partitions())
        return self.widened(
            const(min(largest, self.setup.zero_sub_group + self.rank.largest() // self.rank.ranks)),
            keep=False,
        )

    def _interleaved(self) -> None:
        copy = self._alloc(
            "gradients interleaved by rank", (min(self.size, self.total),), self.dtype, "a copy of the bucket"
        )
        del copy

    def _live(self, elements: int) -> Tensor:
        why = (
            "what computes, what is prefetched and what is used again soon: zero_prefetch_bucket, "
            "zero_reuse_distance"
        )
        return self._alloc("gathered parameters", (elements,), self.dtype, why)

    def _most(self) -> Fetched:
        """The coordinator's largest set in each pass, over the modules of the model in their order."""
        blocks: dict[int, dict[str, list[Parameter]]] = {}
        for tensor in self.rank.stored.all:
            if tensor.role == "buffer" or self.rank.persistent(tensor):
                continue
            for place in self.rank.places(tensor):
                module = tensor.name.rpartition(".")[0]
                blocks.setdefault(place, {}).setdefault(module, []).append(
                    Parameter(self.rank.gathered_elements(tensor))
                )
        checkpointed = self.setup.checkpointing != "none"
        runs: list[tuple[list[Module], bool]] = []
        for place in sorted(blocks):
            inside = 0 <= place < self.rank.spec.depth
            recomputed = checkpointed and inside and place % self.setup.checkpoint_every == 0
            runs.append(([tuple(module) for module in blocks[place].values()], recomputed))
        limits = Limits(
            self.rank.bucket("zero_prefetch_bucket"),
            self.setup.zero_live_parameters,
            self.setup.zero_reuse_distance,
        )
        return fetched(runs, limits)
