"""The schedule of FSDP1 on the tape: when a unit's flat parameter is gathered, when it goes, when its
gradient is cut.

Written after torch 2.14 distributed/fsdp/_runtime_utils.py and _flat_param.py, event by event:

* a unit is gathered before its forward: its part cast where it computes in another dtype, then the whole flat
  parameter, of which the parameters are views. It goes after the forward (FULL_SHARD); the root's stays.
* it is gathered again before its backward, and with BACKWARD_PRE the one that ran before it.
* when all of its gradients are there, they are joined in one flat gradient (the backward of `torch.split`, on
  the stream that gathered, where the views were made) and go; the whole parameter goes; the reduce-scatter's
  output is cast to the dtype that is kept, and the flat gradient goes.
* a unit of which nothing is trained goes when its input has its gradient; the root's and one whose input
  wants none at the end of the backward (`_catch_all_reshard`).
* gradient accumulation under accelerate's `no_sync` keeps the flat gradient whole on every rank until the
  last micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memplan.planner.formula.forward.context import AroundAdapters, Context
from memplan.planner.formula.sharding.fsdp1 import LAYER, ROOT, Flat, Fsdp1Plan
from memplan.planner.formula.sharding.fsdp1_load import GATHERS
from memplan.planner.formula.sharding.plan import StrategyHooks
from memplan.planner.formula.symbolic.expr import Expr
from memplan.planner.formula.tape.tape import Node, Tape, Tensor
from memplan.planner.tables.components import Component

CASTS, REDUCES = "cast of parts", "reduce-scatter"  # streams (_init_streams), beside GATHERS


@dataclass(eq=False, slots=True)
class Unit:
    """One wrapped module: where its flat parameter is."""

    name: str
    flat: Flat
    key: int | None
    reshards: bool
    ran: int | None = None  # its place in the order of forwards
    due: bool = False  # gathered again before its backward
    entered: bool = False  # its backward has begun
    whole: Tensor | None = None


class Fsdp1Schedule(StrategyHooks, AroundAdapters):
    """Every unit of one walk, and the order of their forwards."""

    accumulates = False
    keeps = True
    outside = True

    def __init__(self, rank: Fsdp1Plan, walk: Context) -> None:
        self.rank, self.w, self.t, self.setup = rank, walk, walk.t, rank.setup
        self.units: dict[tuple[str, int | None], Unit] = {}
        self.order: list[Unit] = []
        self.leaving: Unit | None = None  # a frozen layer whose backward has ended
        self.parts: list[Tensor] = []
        self.syncs = not self.setup.loop.prepares  # gradients are reduced in every micro-batch
        self.waiting: dict[str, int] = {}  # flat gradients of earlier micro-batches: the tape's index
        self.adapters = {flat.name: flat for flat in rank.flats if rank.alone(flat.members[0])}
        if self.adapters:
            walk.around = self

    # ---- places of the step --------------------------------------------------------------------------------

    def accumulated(self) -> None:
        """Gradients of the micro-batches before."""
        for flat in self.rank.flats:
            if not flat.trained:
                continue
            size, dtype = (flat.part, flat.kept) if self.syncs else (flat.elements, flat.computed)
            why = "accumulated over micro-batches" if self.syncs else "whole: no_sync reduces nothing yet"
            made = self.t.alloc(f"{flat.name} gradient", (size,), dtype, why, "gradients")
            self.t.log[-1] = (-1, {len(self.t.infos) - 1: flat.count})
            self.waiting[flat.name] = len(self.t.infos) - 1
            self.parts.append(made)

    def begin(self) -> None:
        """Before the forward: the root is gathered."""
        self.order.clear()
        for unit in self.units.values():
            unit.ran, unit.due, unit.entered = None, False, False
        if (root := self._unit(ROOT, None, None)) is not None:
            self._gather(root)

    def enter(self, unit: str, given: Tensor, place: int | None = None, key: int | None = None) -> Tensor:
        """Gather a layer before its forward."""
        one = self._unit(unit, place, key) if unit == LAYER else None
        if one is None:
            return given
        self._gather(one)
        return self._identity("after", given, lambda: self._after(one))

    def leave(self, unit: str, out: Tensor, place: int | None = None, key: int | None = None) -> Tensor:
        """Let a layer go after its forward."""
        one = self._unit(unit, place, key) if unit in (LAYER, ROOT) else None
        return out if one is None else self._left(one, out)

    def enter_adapter(self, weight: Tensor, given: Tensor) -> Tensor:
        """Gather an adapter's own unit before its forward."""
        one = self._adapter(weight)
        if one is not None:
            self._gather(one)
        return given

    def leave_adapter(self, weight: Tensor, out: Tensor) -> Tensor:
        """Let it go."""
        one = self._adapter(weight)
        return out if one is None else self._left(one, out)

    def told(self, weight: Tensor) -> str:
        """With use_orig_params a module has its part between forwards, in the dtype that is kept."""
        flat = self.adapters.get(weight.name)
        return flat.kept if flat is not None and self.setup.use_orig_params else weight.dtype

    def begin_backward(self) -> None:
        """Adapters' gradients are cut as they come."""
        if self.adapters:
            self.t.taken = self._taken

    def end_backward(self) -> None:
        """What was not let go before: the root, and units whose input wants no gradient."""
        self.t.taken = None
        for one in sorted(self.units.values(), key=lambda unit: unit.name == ROOT):
            self._done(one, last=True)

    # ---- events --------------------------------------------------------------------------------------------

    def _unit(self, name: str, place: int | None, key: int | None) -> Unit | None:
        known = self.units.get((name, key))
        if known is None:
            flat = self.rank.flat_at(name, place)
            if flat is None:
                return None
            known = self._made(name, flat, key, name != ROOT)
        return known

    def _adapter(self, weight: Tensor) -> Unit | None:
        flat = self.adapters.get(weight.name)
        if flat is None:
            return None
        key = (weight.name, self.w.layer)
        return self.units.get(key) or self._made(weight.name, flat, self.w.layer, True)

    def _made(self, name: str, flat: Flat, key: int | None, inner: bool) -> Unit:
        self.units[name, key] = made = Unit(name, flat, key, inner and self.setup.reshard_after_forward)
        return made

    def _left(self, one: Unit, out: Tensor) -> Tensor:
        """After a unit's forward: it goes, and is due before the backward of what it gave."""
        if one.reshards:
            one.whole = None
        if one.ran is None:
            one.ran = len(self.order)
            self.order.append(one)
        if not (self.t.grad_enabled and out.requires_grad):
            return out
        one.due, one.entered = True, False
        return self._identity("before", out, lambda: self._before(one))

    def _alloc(
        self,
        flat: Flat,
        what: str,
        size: Expr,
        dtype: str,
        why: str,
        stream: str,
        component: Component = "temporaries",
    ) -> Tensor:
        scope, self.t.scope = self.t.scope, ""
        made = self.t.alloc(f"{flat.name} {what}", (size,), dtype, why, component)
        self.t.infos[-1].stream = stream
        self.t.streams = True
        self.t.scope = scope
        return made

    def _gather(self, one: Unit) -> None:
        """`_unshard`."""
        if one.whole is not None:
            return
        flat, cast = one.flat, None
        if self.rank.offloaded or flat.computed != flat.kept:
            cast = self._alloc(flat, "part to gather", flat.part, flat.computed, "cast or brought", CASTS)
        why = "the flat parameter, whole while its unit computes"
        one.whole = self._alloc(flat, "gathered", flat.part * self.rank.ranks, flat.computed, why, GATHERS)
        del cast

    def _before(self, one: Unit) -> None:
        """`_pre_backward_hook`: this unit, and with BACKWARD_PRE the one before."""
        if not one.entered:
            one.entered = True
            if one.due:
                self._gather(one)
            one.due = False
            if self.setup.backward_prefetch == "pre":
                self._prefetch(one)
        if self.leaving is not None:
            leaving, self.leaving = self.leaving, None
            self._done(leaving)

    def _prefetch(self, one: Unit) -> None:
        if one.ran:
            before = self.order[one.ran - 1]
            if before.due:
                self._gather(before)

    def _after(self, one: Unit) -> None:
        """A layer's input has its gradient. A frozen one's hook is on that tensor, behind the one by which
        the layer before is gathered, where it has gone.
        """
        if one.flat.trained or not one.key or not one.reshards:
            self._done(one)
        else:
            self.leaving = one

    def _done(self, one: Unit, *, last: bool = False) -> None:
        """`_post_backward_hook`: gradients are joined, the parameter goes, this rank's part stays."""
        names = {member.name for member in one.flat.members} if one.flat.trained else ()
        leaves = [
            leaf
            for (key, _), leaf in self.w.params.items()
            if key == one.key and leaf.name in names and leaf.grad is not None
        ]
        flat, joined = one.flat, None
        if leaves:
            why = "the unit's gradients joined: the backward of torch.split"
            joined = self._alloc(flat, "whole gradient", flat.elements, flat.computed, why, GATHERS)
            for leaf in leaves:
                leaf.grad = None
        one.whole = None
        if self.setup.backward_prefetch == "post" and not last:
            self._prefetch(one)
        if joined is not None:
            self._reduce(flat)

    def _reduce(self, flat: Flat) -> None:
        """`_reduce_grad`: the part of the sum, cast to the dtype that is kept."""
        if flat.name in self.waiting and not self.syncs:
            self.t.log.append((-1, {self.waiting[flat.name]: -1}))
        low = None
        if flat.computed != flat.kept:
            low = self._alloc(
                flat, "reduced gradient", flat.part, flat.computed, "before it is cast", REDUCES
            )
        why = "this rank's part of the gradient, in the dtype that is kept"
        kept = self._alloc(flat, "gradient", flat.part, flat.kept, why, REDUCES, "gradients")
        del low
        if not (self.rank.offloaded or (self.syncs and self.waiting)):
            self.parts.append(kept)

    def _taken(self, leaf: Tensor) -> None:
        """An adapter's gradient is there."""
        if leaf.name in self.adapters:
            for (name, key), one in self.units.items():
                if name == leaf.name and self.w.params.get((key, name)) is leaf:
                    self._done(one)

    def _identity(self, name: str, given: Tensor, then: Callable[[], None]) -> Tensor:
        """A place in the graph: `then` runs when its gradient is there."""
        shape, dtype = given.shape, given.dtype

        def backward(t: Tape, node: Node, grad: Tensor) -> list[Tensor | None]:
            then()
            return [Tensor(grad.buffer, shape, dtype)]

        return self.t.op(
            f"{name} the unit's backward", (given,), shape, dtype, alias=given, backward=backward
        )
