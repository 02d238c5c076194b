"""The whole run as the allocator sees it: the build, then two steps, the optimizer's states born in the
first.

What the tape leaves out of a step is added here: the cuBLAS workspaces come with the first product of each
thread, gradients go when they are zeroed, the norms of clipping are one number a gradient.

Which tensor comes and goes when is the same at all sizes: it is written once a rank, and a size fills in the
bytes of what depends on micro-batch and sequence length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter

from memplan.planner.formula.replay.events import Events
from memplan.planner.formula.replay.importance import Importance
from memplan.planner.formula.replay.load import Values
from memplan.planner.formula.replay.optimizer import OptimizerSteps
from memplan.planner.formula.replay.passes import Pass, as_pass, first_products
from memplan.planner.formula.replay.unroll import unroll
from memplan.planner.formula.resident.loading import batch_sizes
from memplan.planner.formula.sharding.plan import ShardingPlan
from memplan.planner.formula.symbolic.expr import AtomValues, Expr
from memplan.planner.formula.tape.peaks import sizes_at
from memplan.planner.formula.tape.tape import Tape
from memplan.planner.inputs import tasks
from memplan.planner.tables.components import GENERATION
from memplan.planner.tables.methods import METHODS

STEPS = 2  # the second is the steady one


@dataclass(frozen=True, slots=True)
class Steady:
    """The events of a steady step: which ids it frees of the step before (`given`), and which it leaves."""

    events: list[int]
    given: list[int]
    left: list[int]


@dataclass
class RunScript:
    """A run of one rank: `events` with the bytes of all that rank decides; `fill`: (first id, how many, which
    tape, bytes of them from those of the tape's buffers); `batch`: (id, bytes).
    """

    events: Events
    fill: list[tuple[int, int, int, Callable[[Sequence[int]], Sequence[int]]]] = field(default_factory=list)
    batch: list[tuple[int, Expr]] = field(default_factory=list)
    workspaces: int = 0  # how many threads' cuBLAS workspaces the load has made

    def fills(self, first: int, which: int, tape: Tape, indices: Sequence[int]) -> None:
        """The ids from `first` on are these buffers of a tape."""
        self.fill.append((first, len(indices), which, _picked(indices)))
        if tape.streams:
            streams = ((place, tape.infos[index].stream) for place, index in enumerate(indices, first))
            self.events.streams.update((place, stream) for place, stream in streams if stream)

    @cached_property
    def steady(self) -> Steady:
        """The steady step."""
        events = self.events.events[self.events.steady : self.events.trained]
        made = {each for each in events if each >= 0}
        freed = {~each for each in events if each < 0}
        return Steady(events, sorted(freed - made), sorted(made - freed))


class Run:
    """One structure's tapes as events of every layer: `single` is a micro-batch that finds no gradients,
    `again` one that adds to those of micro-batches before (None where a step has one).
    """

    def __init__(
        self,
        rank: ShardingPlan,
        single: Tape,
        again: Tape | None,
        after: Sequence[tuple[str, Tape]] = (),
        generation: Tape | None = None,
    ) -> None:
        self.rank, self.setup, self.parameter_table = rank, rank.setup, rank.stored
        self.after = tuple(name for name, _ in after)
        self.tapes = (single, again, generation, *(tape for _, tape in after))
        self._scripts: dict[tuple[int, bool], RunScript] = {}

    @cached_property
    def passes(self) -> tuple[Pass | None, ...]:
        """The events of a step's one micro-batch; with accumulation, of each that follows the first; of a
        generation; of what follows training.
        """
        return tuple(None if tape is None else as_pass(tape, unroll(tape)) for tape in self.tapes)

    def events(self, values: Values, *, late: bool = True) -> Events:
        """The run at these sizes; `late`: what a race decides goes as late as it can. Its list of events is
        shared with other sizes: not to be changed.
        """
        script = self.written(values["R"], late=late)
        atoms = AtomValues(values)
        tapes = [sizes_at(tape, values) if tape is not None else [] for tape in self.tapes]
        sizes = script.events.sizes.copy()
        for first, count, tape, chosen in script.fill:
            sizes[first : first + count] = chosen(tapes[tape])
        for which, size in script.batch:
            sizes[which] = size.evaluate(atoms)
        return script.events.at(sizes)

    def written(self, rank: int, *, late: bool = True) -> RunScript:
        """The run of a rank, written once; nothing that it evaluates depends on micro-batch or sequence
        length.
        """
        script = self._scripts.get((rank, late))
        if script is None:
            script = self._scripts[rank, late] = self._written({"R": rank}, late)
        return script

    def _written(self, values: Values, late: bool) -> RunScript:
        out = Events()
        script = RunScript(out)
        setup, layers_of = self.setup, self.rank.each_layer
        rank = AtomValues({"R": values["R"]})
        load = self.rank.load(values["R"])
        out.events, out.sizes = load.events.copy(), load.sizes.copy()
        if load.product is not None:
            self._workspace_at_load(script, load.product)
        wrapped = self.rank.wrap(out, values["R"])
        for size in batch_sizes(setup):
            script.batch.append((out.alloc(0), size))
        trains = METHODS[setup.method].trains != "nothing"
        kept = list(self.rank.until_backward())
        gradients: list[int] = []
        sampled: list[int] = []
        again = tasks.generated(setup).steps < setup.gradient_accumulation
        importance = Importance(self.parameter_table, rank, layers_of)
        clips = trains and setup.loop.clips and not setup.optimizer_in_backward
        optimizer = OptimizerSteps(self.parameter_table, rank, layers_of, self.rank.stepped())
        # gradients are reduced in each micro-batch, or in each step's last
        several = self.passes[1] is not None
        second = (0, 1) if several and not setup.loop.prepares else (1, int(several))
        for step in range(STEPS):
            out.ends("load" if step == 0 else "first step")
            out.steady = len(out.events)
            if setup.zero_grad == "before_forward":
                out.free(*gradients)
                gradients = []
            for which, each in enumerate(self.passes[:2]):
                if each is None:
                    continue
                if self.passes[2] is not None and (which == 0 or again):
                    sampled = self._generation(script, sampled, first=step == which == 0)
                after = 0
                if (step, which) == second:
                    born = self._gradient_bytes(rank)
                    after = self.rank.regroup(out, values["R"], wrapped, born, late=late)
                first = step == which == 0
                states = self._states(optimizer) if first and setup.optimizer_in_backward else []
                made, kept = self._micro_batch(
                    which, script, kept, first=first, leaves=(after, wrapped), states=states
                )
                gradients += made
            if trains:
                if clips:
                    out.free(*[out.alloc(4) for _ in optimizer.tensors])
                gradients = self._optimizer(optimizer, script, gradients, first=step == 0)
                importance.update(out)
            if setup.zero_grad == "after_step":
                out.free(*gradients)
                gradients = []
            if not setup.retain_outputs:
                out.free(*kept)
                kept = []
        out.trained = len(out.events)
        if self.after and setup.loop.frees_gradients:
            out.free(*gradients)
        for which, moment in enumerate(self.after, 3):
            out.free(*self._between(which, moment, script))
        return script

    def _between(self, which: int, moment: str, script: RunScript) -> list[int]:
        """Write a generation, or what follows training; the ids of what it leaves."""
        made, out, tape = self.passes[which], script.events, self.tapes[which]
        assert made is not None and tape is not None
        infos = made.infos[made.begin :]
        base = out.reserve(len(infos)) - made.begin
        script.fills(base + made.begin, which, tape, infos)
        out.extend(made.events[made.marks[moment] :], base)
        return [each + base for each in made.left]

    def _generation(self, script: RunScript, before: list[int], *, first: bool) -> list[int]:
        """Write a generation; the ids of its rows, for which those of the one before go. The first product of
        all makes its thread's workspace.
        """
        if first and not script.workspaces:
            [workspace, *_], out, tape = self._workspaces(2), script.events, self.tapes[2]
            assert tape is not None
            script.fills(out.alloc(0), 2, tape, [workspace])
            script.workspaces = 1
        made = self._between(2, GENERATION, script)
        script.events.free(*before)
        return made

    def _gradients(self) -> list[tuple[str, str, Expr]]:
        """Name, dtype and size of each gradient, in the order in which they come."""
        made, tape = self.passes[0], self.tapes[0]
        assert made is not None and tape is not None
        found = [tape.infos[made.infos[each]] for each in made.gradients]
        return [(info.name, info.dtype, info.size) for info in found]

    def _gradient_bytes(self, rank: AtomValues) -> list[tuple[str, int]]:
        """Dtype and bytes of each gradient, in the order in which they come."""
        return [(dtype, size.evaluate(rank)) for _, dtype, size in self._gradients()]

    def _optimizer(
        self, optimizer: OptimizerSteps, script: RunScript, gradients: list[int], *, first: bool
    ) -> list[int]:
        """Write one step of the optimizer; the ids of the gradients that it leaves."""
        which = 0 if self.tapes[1] is None else 1
        tape = self.tapes[which]
        assert tape is not None

        def fill(base: int, indices: Sequence[int]) -> None:
            script.fills(base, which, tape, indices)

        names = [name for name, _, _ in self._gradients()] if optimizer.replaces else []
        whole = list(zip(names, gradients, strict=True)) if names else []
        left = optimizer.write(script.events, tape, fill, first=first, gradients=whole)
        return left if names else gradients

    def _states(self, optimizer: OptimizerSteps) -> list[tuple[int, list[int]]]:
        """Behind how many events of the first backward states come, and their bytes."""
        made, tape = self.passes[0], self.tapes[0]
        assert made is not None and tape is not None
        begin = made.marks["backward"]
        births = [(stop, each) for stop, each in enumerate(made.events[begin:], begin + 1) if each >= 0]
        sizes = optimizer.born_at(tape.infos[made.infos[each]].name for _, each in births)
        return [(stop, found) for (stop, _), found in zip(births, sizes, strict=True) if found]

    def _workspace_at_load(self, script: RunScript, place: int) -> None:
        """The main thread's cuBLAS workspace, which the load's first product made."""
        (workspace, *_), out = self._workspaces(0), script.events
        script.fill.append((out.reserve(1), 1, 0, _picked([workspace])))
        out.events.insert(place, len(out.sizes) - 1)
        script.workspaces = 1

    def _workspaces(self, which: int) -> list[int]:
        """Where a tape describes the cuBLAS workspaces, the main thread's first."""
        tape, made = self.tapes[which], self.passes[which]
        assert tape is not None and made is not None
        return [i for i in made.infos[: made.begin] if "workspace" in tape.infos[i].name]

    def _micro_batch(
        self,
        which: int,
        script: RunScript,
        before: list[int],
        *,
        first: bool,
        leaves: tuple[int, list[int]] = (0, []),
        states: Sequence[tuple[int, list[int]]] = (),
    ) -> tuple[list[int], list[int]]:
        """Write one micro-batch of a tape; (ids of its gradients, of what else it leaves). `before`: what the
        micro-batch before left, which the loop's variable holds until the next forward has returned
        (planner/run/step.py `outputs`, `built.held`); an answer goes before the next prompt is read.
        `leaves`: after how many gradients (0: never) what else goes. `states`: behind so many events come
        some of these bytes.
        """
        made, tape, out = self.passes[which], self.tapes[which], script.events
        assert made is not None and tape is not None
        infos = made.infos[made.begin :]
        base = out.reserve(len(infos)) - made.begin
        script.fills(base + made.begin, which, tape, infos)
        position = made.marks["forward"]
        backward = made.marks.get("backward", position)
        stops: list[tuple[int, int, list[int]]] = [(backward, -1, before)]
        if first:
            products = zip(first_products(made, tape), self._workspaces(which), strict=False)
            threads = list(products)[script.workspaces :]
            stops += [(cut, workspace, []) for cut, workspace in threads if cut is not None]
        if after := leaves[0]:
            last = (made.gradients[:after] or [made.events[backward]])[-1]
            stops.append((made.events.index(last, backward) + 1, -1, leaves[1]))
        born = dict(states)
        stops += [(stop, -1, []) for stop in born]
        for stop, workspace, gone in sorted(stops):
            out.extend(made.events[position:stop], base)
            if workspace >= 0:
                script.fill.append((out.alloc(0), 1, which, _picked([workspace])))
            for nbytes in born.pop(stop, ()):
                out.alloc(nbytes)
            out.free(*gone)
            position = stop
        out.extend(made.events[position : made.marks.get("optimizer_step")], base)
        return [each + base for each in made.gradients], [each + base for each in made.left]


def _picked(indices: Sequence[int]) -> Callable[[Sequence[int]], Sequence[int]]:
    """What takes the entries at these places of a list."""
    if len(indices) < 2:
        return lambda sizes: [sizes[index] for index in indices]
    return itemgetter(*indices)
