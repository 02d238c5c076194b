"""The schedule of FSDP2 on the tape: when a unit is gathered, when it goes, when its gradients are cut.

Written after torch 2.13 distributed/fsdp/_fully_shard/_fsdp_param_group.py and _fsdp_state.py, event by
event:

* forward: the all-gather's flat output, then the unit's parameters copied out of it. The flat output is held
  until the *next* unit has copied (implicit prefetch), the parameters until the unit's forward ends
  (`reshard_after_forward`). The outermost unit keeps them.
* backward: before a unit the next one below is gathered ahead (`_backward_prefetch`). After it parameters go,
  whole gradients are copied into the reduce-scatter's input, go, and leave this rank's part. The input is
  held until the next unit is there.
* between replicas (HSDP) that part is averaged in place, in the dtype in which they are reduced; where
  another one is kept, it stays until the backward ends (torch 2.13 _fsdp_param_group.py AllReduceState);
* gradient accumulation under accelerate's `no_sync` reduces nothing: whole gradients stay on every rank until
  the last micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.resident.parameter_spec import ParameterSpec
from memplan.planner.formula.sharding.fsdp import FsdpPlan, Member
from memplan.planner.formula.sharding.plan import StrategyHooks, nbytes
from memplan.planner.formula.symbolic.expr import Expr, total
from memplan.planner.formula.tape.tape import Node, Tape, Tensor
from memplan.planner.tables.components import Component

GATHERS, REDUCES = "all-gather", "reduce-scatter"  # streams (FSDPCommContext)
IDLE, FORWARD, BEFORE, AFTER = "idle", "forward", "before backward", "after backward"


@dataclass(eq=False, slots=True)
class Unit:
    """The parameters that are gathered together, and where they are."""

    name: str
    members: tuple[Member, ...]
    reshards: bool
    key: int | None = None
    state: str = IDLE
    gathering: Tensor | None = None  # the all-gather's flat output
    whole: list[Tensor] = field(default_factory=list)  # the parameters, unsharded
    runs: list[int] = field(default_factory=list)  # indices in the order of forwards


class FsdpSchedule(StrategyHooks):
    """Every unit of one walk, and what they share: held buffers and the order of forwards."""

    accumulates = False
    keeps = True

    def __init__(self, rank: FsdpPlan, walk: Context) -> None:
        self.rank, self.w, self.t = rank, walk, walk.t
        self.setup = rank.setup
        self.units: dict[tuple[str, int | None], Unit] = {}
        self.order: list[Unit] = []
        self.held: Tensor | None = None  # all-gather output of the unit before
        self.reducing: Tensor | None = None  # reduce-scatter input of the unit before
        self.parts: list[Tensor] = []  # sharded gradients
        self.averaged: list[Tensor] = []  # inputs of the all-reduce between replicas
        self.backward = False
        self.waiting: dict[
            str, int
        ] = {}  # gradients of earlier micro-batches, by the tensor's name: the tape's index
        self.syncs = not self.setup.loop.prepares  # gradients are reduced in every micro-batch

    # ---- places of the step --------------------------------------------------------------------------------

    def accumulated(self) -> None:
        """Gradients of the micro-batches before."""
        for tensor in self.rank.stored.trained:
            self._wait(tensor)
        self.w.accumulated = not self.syncs

    def begin(self) -> None:
        """Before the forward: the units that are gathered at the model's own forward."""
        self.enter("root", None)

    def _wait(self, tensor: ParameterSpec) -> None:
        seen = next(t for t in self.rank.seen.trained if t.name == tensor.name)
        one = self.rank.shard(tensor) if self.syncs else seen
        why = (
            "accumulated over micro-batches"
            if self.syncs
            else "whole: no_sync reduces nothing before the last micro-batch"
        )
        made = self.t.alloc(f"{one.name} gradient", one.shape, one.dtype, why, "gradients")
        self.t.log[-1] = (-1, {len(self.t.infos) - 1: tensor.count})
        self.waiting[tensor.name] = len(self.t.infos) - 1
        self.parts.append(made)

    def enter(
        self, unit: str, given: Tensor | None, place: int | None = None, key: int | None = None
    ) -> Tensor:  # type: ignore[override]
        """Gather a unit before its forward, or before it is recomputed."""
        one = self._unit(unit, place, key)
        if one is None or (one.state == BEFORE and self.backward):
            if one is not None and not one.whole:  # gathered again for a recomputation
                self._gather(one)
                self._copy_out(one)
            return given  # type: ignore[return-value]
        entering, one.state = one.state != FORWARD, FORWARD
        self._gather(one)
        self._copy_out(one)
        if given is None or not entering:
            return given  # type: ignore[return-value]
        return self._identity("after the unit's backward", given, lambda: self._after(one))

    def leave(self, unit: str, out: Tensor, place: int | None = None, key: int | None = None) -> Tensor:
        """Reshard a unit after its forward, where it reshards, and hook its backward."""
        one = self._unit(unit, place, key)
        if one is not None and not (one.state == BEFORE and self.backward):
            if not self.backward:
                if one.reshards:
                    _let_go(one.whole)
                one.runs.append(len(self.order))
                self.order.append(one)
            one.state = IDLE
            out = self._identity("before the unit's backward", out, lambda: self._before(one))
        if unit == "root":
            self.held = None
        return out

    def begin_backward(self) -> None:
        """From here on a unit is gathered for its backward."""
        self.backward = True

    def end_backward(self) -> None:
        """Units whose inputs wanted no gradient are reduced last, then the last buffers go."""
        for one in sorted(self.units.values(), key=lambda unit: unit.name != "root"):
            if one.state != AFTER:
                self._after(one)
            one.gathering = None
        self.reducing = None
        with self.t.dropping():
            self.averaged.clear()

    # ---- events --------------------------------------------------------------------------------------------

    def _unit(self, unit: str, place: int | None, key: int | None) -> Unit | None:
        """The unit that a module is, None where it has no parameters of its own."""
        known = self.units.get((unit, key))
        if known is None:
            members = tuple(self.rank.members(unit, place))
            if not members:
                return None
            reshards = self.setup.reshard_after_forward and unit not in ("root", "tail")
            known = self.units[unit, key] = Unit(unit, members, reshards, key)
        return known

    def _alloc(
        self,
        unit: Unit,
        what: str,
        sizes: Iterable[tuple[Expr, str]],
        why: str,
        stream: str = "",
        component: Component = "temporaries",
    ) -> Tensor:
        """One buffer for several tensors; of bytes where they differ in dtype."""
        parts = list(sizes)
        kinds = {dtype for _, dtype in parts}
        name = f"{unit.name}: {what}"
        scope, self.t.scope = self.t.scope, ""
        if len(kinds) == 1:
            made = self.t.alloc(name, (total(n for n, _ in parts),), kinds.pop(), why, component)
        else:
            made = self.t.alloc(
                name, (total(nbytes(n, dtype) for n, dtype in parts),), "uint8", why, component
            )
        self.t.infos[-1].stream = stream
        self.t.streams = True
        self.t.scope = scope
        return made

    def _gather(self, unit: Unit) -> None:
        """`unshard`: shards cast (or brought back from the host), then the flat output of the all-gather."""
        if unit.whole or unit.gathering is not None:
            return
        moved = [m for m in unit.members if self.rank.offloaded or m.computed != m.kept.dtype]
        cast = (
            self._alloc(
                unit, "shards to gather", [(m.part, m.computed) for m in moved], "cast or moved", GATHERS
            )
            if moved
            else None
        )
        why = "the all-gather's flat output, copied out into the parameters"
        unit.gathering = self._alloc(
            unit, "all-gather output", [(m.gathered, m.computed) for m in unit.members], why, GATHERS
        )
        del cast

    def _copy_out(self, unit: Unit) -> None:
        """`wait_for_unshard`: the parameters in full."""
        if unit.gathering is None:
            return
        if unit.state == FORWARD:
            self.held = None
        why = "the unit's parameters, whole while it computes"
        unit.whole = [
            self._alloc(unit, f"gathered {m.name}", [(m.gathered, m.computed)], why) for m in unit.members
        ]
        if unit.state == FORWARD:
            self.held = unit.gathering
        unit.gathering = None

    def _before(self, unit: Unit) -> None:
        """`pre_backward`: this unit, and the next one ahead."""
        if unit.state == BEFORE:
            return
        unit.state = BEFORE
        self._gather(unit)
        self._copy_out(unit)
        if unit.runs and (index := unit.runs.pop()) > 0:
            self._gather(self.order[index - 1])

    def _after(self, unit: Unit) -> None:
        """`post_backward`: parameters go, gradients are cut into this rank's part."""
        unit.state = AFTER
        _let_go(unit.whole)
        names = {m.name for m in unit.members if m.trained}
        grads = [
            p
            for (key, _), p in self.w.params.items()
            if key == unit.key and p.name in names and p.grad is not None
        ]
        self.reducing = None
        if not grads:
            return
        reduced = [m for m in unit.members if m.name in {p.name for p in grads}]
        why = "whole gradients in the order of the reduce-scatter"
        given = self._alloc(unit, "reduce-scatter input", [(m.gathered, m.computed) for m in reduced], why)
        for leaf in grads:
            if leaf.name in self.waiting and not self.syncs:
                self.t.log.append((-1, {self.waiting[leaf.name]: -1}))
        last = grads[-1].grad  # a loop variable of `foreach_reduce` keeps it until that returns
        for leaf in reversed(grads):
            leaf.grad = None
        self._parts(unit, reduced)
        del last
        self.reducing = given

    def _parts(self, unit: Unit, reduced: list[Member]) -> None:
        """The output of the reduce-scatter, cast to the dtype that is kept: this rank's gradients are views
        of it.
        """
        made: Tensor | None = None
        if any(m.computed != m.kept.dtype for m in reduced):
            narrow = [(m.part, m.computed) for m in reduced]
            made = self._alloc(unit, "reduce-scatter output", narrow, "before it is cast", REDUCES)
            if self.setup.replicas > 1:
                self.averaged.append(made)
        why = "this rank's part of the gradients, in the dtype that is kept"
        sizes = [(m.part, m.kept.dtype) for m in reduced]
        kept = self._alloc(unit, "gradients", sizes, why, REDUCES, "gradients")
        if not (
            self.rank.offloaded or (self.syncs and self.waiting)
        ):  # moved to the host, or added to what is there
            self.parts.append(kept)
        del kept, made

    def _identity(self, name: str, given: Tensor, then: Callable[[], None]) -> Tensor:
        """A place in the graph: `then` runs when its gradient is there."""
        shape, dtype = given.shape, given.dtype

        def backward(t: Tape, node: Node, grad: Tensor) -> list[Tensor | None]:
            then()
            return [Tensor(grad.buffer, shape, dtype)]

        return self.t.op(name, (given,), shape, dtype, alias=given, backward=backward)


def _let_go(tensors: list[Tensor]) -> None:
    """Each in its turn."""
    while tensors:
        del tensors[0]
