"""The whole run as the allocator sees it: the build, then two steps, the optimizer's states born in the
first.

What the tape leaves out of a step is added here: the cuBLAS workspaces come with the first product of each
thread, gradients go when they are zeroed, the norms of clipping are one number a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from memplan.planner.formula.replay.events import Events
from memplan.planner.formula.replay.importance import Importance
from memplan.planner.formula.replay.load import Load, Values, batch, in_groups, states
from memplan.planner.formula.replay.unroll import Unrolled, unroll
from memplan.planner.formula.resident.parameter_spec import ParameterSpec
from memplan.planner.formula.sharding.plan import ShardingPlan
from memplan.planner.formula.tape.tape import Info, Tape
from memplan.planner.tables.methods import METHODS

STEPS = 2  # the second is the steady one
_PRODUCTS = ("matmul", "linear", "bmm")  # how the tape says what made a buffer
_INTO = ("tile of logits", "chunk of logits")  # what a product is written into


@dataclass(slots=True)
class _Pass:
    """One micro-batch's events, from its forward on: `begin` where ids of what was there before end."""

    events: list[int]
    infos: list[int]
    begin: int
    marks: dict[str, int]
    gradients: list[int]
    left: list[int]  # alive at the end, gradients not among them


class Run:
    """One structure's tapes as events of every layer: `single` is a micro-batch that finds no gradients,
    `again` one that adds to those of micro-batches before (None where a step has one).
    """

    def __init__(self, rank: ShardingPlan, single: Tape, again: Tape | None) -> None:
        self.rank, self.setup, self.parameter_table = rank, rank.setup, rank.stored
        self.tapes = (single, again)

    @cached_property
    def passes(self) -> tuple[_Pass, _Pass | None]:
        """The events of a step's one micro-batch and, with accumulation, of each that follows the first."""
        single, again = self.tapes
        return _as_pass(single, unroll(single)), None if again is None else _as_pass(again, unroll(again))

    def events(self, values: Values) -> Events:
        """The run at these sizes."""
        out = Events()
        setup, layers_of = self.setup, self.layers
        Load(self.parameter_table, values, out, layers_of).run()
        batch(self.parameter_table, values, out)
        trains = METHODS[setup.method].trains != "nothing"
        kept: list[int] = []
        gradients: list[int] = []
        importance = Importance(self.parameter_table, values, layers_of)
        clips = trains and setup.loop.clips and not setup.optimizer_in_backward
        norms = len(in_groups(self.parameter_table, layers_of)) if clips else 0
        for step in range(STEPS):
            out.ends("load" if step == 0 else "first step")
            out.steady = len(out.events)
            if setup.zero_grad == "before_forward":
                out.free(*gradients)
                gradients = []
            single, again = self.passes
            ends = self._micro_batch(single, self.tapes[0], values, out, first=step == 0)
            gradients += ends[0]
            if again is not None and self.tapes[1] is not None:
                out.free(*kept, *ends[1])
                ends = self._micro_batch(again, self.tapes[1], values, out, first=False)
                gradients += ends[0]
            else:
                out.free(*kept)
            kept = ends[1]
            if trains:
                numbers = [out.alloc(4) for _ in range(norms)]
                out.free(*numbers)
                if step == 0:
                    self._states(values, out)
                importance.update(out)
            if setup.zero_grad == "after_step":
                out.free(*gradients)
                gradients = []
            if not setup.retain_outputs:
                out.free(*kept)
                kept = []
        return out

    def layers(self, stored: ParameterSpec) -> Sequence[int]:
        """The decoder layers that have a tensor: the first ones for what is beside no weight
        (bottlenecks).
        """
        return self.rank.layers(stored) or (range(stored.count) if stored.count > 1 else ())

    def _states(self, values: Values, out: Events) -> None:
        from memplan.planner.tables.optimizers import OPTIMIZERS

        if not OPTIMIZERS[self.setup.optimizer].at_once:
            states(self.parameter_table, values, out, self.layers)

    def _micro_batch(
        self, made: _Pass, tape: Tape, values: Values, out: Events, *, first: bool
    ) -> tuple[list[int], list[int]]:
        """Write one micro-batch; (ids of its gradients, of what else it leaves)."""
        sizes = [0] * len(tape.infos)
        known: dict[int, int] = {}
        for number, info in enumerate(tape.infos):
            value = known.get(id(info.size))
            if value is None:
                value = known[id(info.size)] = info.size.evaluate(values)
            sizes[number] = value
        base = len(out.sizes) - made.begin
        by_id = [sizes[index] for index in made.infos[made.begin :]]
        start = made.marks["forward"]
        if not first:
            out.extend(made.events[start:], by_id, base)
        else:
            cuts = [position for position in _first_products(made, tape) if position is not None]
            workspaces = [i for i in made.infos[: made.begin] if "workspace" in tape.infos[i].name]
            at = base + made.begin
            spaces: list[int] = []
            out.sizes += by_id
            before = start
            for position, workspace in zip(cuts, workspaces, strict=False):
                out.extend(made.events[before:position], (), base)
                spaces.append(out.alloc(sizes[workspace]))
                before = position
            out.extend(made.events[before:], (), base)
            assert at <= len(out.sizes)
        return [each + base for each in made.gradients], [each + base for each in made.left]


def _as_pass(tape: Tape, made: Unrolled) -> _Pass:
    marks = {name: position for position, name in made.marks}
    start = marks["forward"]
    begin = max((each for each in made.events[:start] if each >= 0), default=-1) + 1
    ends = marks.get("end", len(made.events))
    events = [each for each in made.events[:ends]]
    # what was there before belongs to the run, not to the micro-batch: nothing of it is freed here
    events[start:] = [each for each in events[start:] if (each if each >= 0 else ~each) >= begin]
    alive = {each for each in events[start:] if each >= 0} - {~each for each in events[start:] if each < 0}
    gradients = [each for each in sorted(alive) if tape.infos[made.infos[each]].component == "gradients"]
    left = sorted(alive - set(gradients))
    return _Pass(events, made.infos, begin, marks, gradients, left)


def _first_products(made: _Pass, tape: Tape) -> list[int | None]:
    """Where each thread's first product has its output: behind it comes that thread's workspace."""
    backward = made.marks.get("backward", len(made.events))
    spans = ((made.marks["forward"], backward), (backward, len(made.events)))

    def product(info: Info) -> bool:
        return info.why.endswith(_PRODUCTS) or "grad @" in info.why or info.name.endswith(_INTO)

    found: list[int | None] = []
    for start, stop in spans:
        found.append(
            next(
                (
                    position + 1
                    for position in range(start, stop)
                    if (each := made.events[position]) >= 0 and product(tape.infos[made.infos[each]])
                ),
                None,
            )
        )
    return found
