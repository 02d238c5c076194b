"""An optimizer's step as the allocator sees it: tensor after tensor in the order of its parameter groups, its
states born in the first.

torch's optimizers and schedule-free ones make the states of a whole group before they compute (torch 2.13
optim/adam.py step: `_init_group`, then `adam`), the others each tensor's when they come to it (bitsandbytes
0.50 optim/optimizer.py Optimizer8bit.step; transformers 5.24 optimization.py Adafactor.step; torchao 0.18
optim/adam.py). A group's lists go before the next group's are made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from memplan.planner.formula.optimizer_step import SHAPES, actions_of, comes_last
from memplan.planner.formula.parameters import ParameterTable
from memplan.planner.formula.replay.events import Events
from memplan.planner.formula.replay.orders import Each, in_order
from memplan.planner.formula.resident.parameter_spec import ParameterSpec
from memplan.planner.formula.resident.states import optimizer_of
from memplan.planner.formula.tape.tape import Tape
from memplan.planner.tables.optimizer_row import Optimizer
from memplan.planner.tables.optimizer_steps import Drop, Mode, Release, Step
from memplan.planner.tables.optimizers import OPTIMIZERS

GROUP_FIRST = ("torch", "schedulefree")
"""Libraries whose step makes the states of a group at once."""
Fill = Callable[[int, Sequence[int]], None]


def in_groups(
    parameter_table: ParameterTable, layers_of: Any, stepped: Sequence[ParameterSpec] | None = None
) -> list[Each]:
    """Every trained tensor (`stepped`: as this rank has it) in the optimizer's order: in a plain loop as the
    model has them, else those of its first group first (transformers trainer.py create_optimizer: no biases,
    no norms; of an optimizer of low rank: what is not projected).
    """
    tensors = parameter_table.trained if stepped is None else stepped
    found = in_order([(stored, layers_of(stored)) for stored in tensors])
    row = OPTIMIZERS[parameter_table.setup.optimizer]
    if not (row.low_rank or parameter_table.setup.loop.decay_groups):
        return found
    return sorted(found, key=lambda each: comes_last(row, each[0]))


def states(parameter_table: ParameterTable, values: Mapping[str, int], out: Events, layers_of: Any) -> None:
    """Optimizer states that are made with the optimizer, parameter by parameter."""
    kept = parameter_table.kept_by_optimizer
    sizes = _state_bytes(parameter_table, values, kept)
    for stored, _ in in_groups(parameter_table, layers_of, kept):
        for nbytes in sizes[id(stored)]:
            out.alloc(nbytes)


def _state_bytes(
    parameter_table: ParameterTable, values: Mapping[str, int], tensors: Sequence[ParameterSpec]
) -> dict[int, list[int]]:
    """Bytes of each state of one tensor on the device, by the tensor's identity."""
    return {
        id(stored): [
            row.size.evaluate(values) // row.count for row in parameter_table.states_of(stored, paged=False)
        ]
        for stored in tensors
    }


class OptimizerSteps:
    """Writes the steps of one run into its events. `stepped`: what the optimizer has on this rank."""

    def __init__(
        self,
        parameter_table: ParameterTable,
        values: Mapping[str, int],
        layers_of: Any,
        stepped: Sequence[ParameterSpec],
    ) -> None:
        self.setup = parameter_table.setup
        self.row = OPTIMIZERS[self.setup.optimizer]
        self.tensors = in_groups(parameter_table, layers_of, stepped)
        self.states = _state_bytes(parameter_table, values, stepped)
        # whether gradients give way to projected ones in the step
        released = any(isinstance(action, Release) for action in self.row.projected)
        self.replaces = released and not self.setup.optimizer_in_backward

    def write(
        self, out: Events, tape: Tape, fill: Fill, *, first: bool, gradients: Sequence[tuple[str, int]] = ()
    ) -> list[int]:
        """One step: `tape` has what it makes of each tensor, `fill` is told which of it the ids from one on
        are; `first`: the states are born. `gradients`: name and id of those that it may replace; the ids of
        what is left.
        """
        if self.setup.optimizer_in_backward:
            return []
        step = _Step(out, {(info.name, info.shape): index for index, info in enumerate(tape.infos)})
        step.gradients = self._by_tensor(gradients)
        for optimizer in (self.row, *([OPTIMIZERS[self.row.others]] if self.row.others else ())):
            mode: Mode = self.setup.optimizer_mode if optimizer is self.row else optimizer.modes[0]
            own = [each for each in self.tensors if optimizer_of(self.row, each[0]) is optimizer]
            for group in self._groups(own):
                self._group(step, optimizer, mode, group, first and not optimizer.at_once)
        return step.end(fill)

    def born_at(self, made: Iterable[str]) -> Iterator[list[int]]:
        """Bytes of the states that are born in the first backward behind each buffer that it makes, by the
        buffers' names: a tensor's come with its gradient, a projected one's with the projected gradient.
        """
        left: dict[str, list[tuple[int, ParameterSpec]]] = defaultdict(list)
        if self.setup.optimizer_in_backward and not self.row.at_once:
            for stored, layer in self.tensors:
                projected = "" if stored.projector is None else "projected "
                left[f"{stored.name} {projected}gradient"].append((layer, stored))
        for waiting in left.values():
            waiting.sort(key=lambda each: each[0])  # a backward comes to the last layer first
        for name in made:
            waiting = left.get(name, [])
            yield self.states[id(waiting.pop()[1])] if waiting else []

    def _by_tensor(self, gradients: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """The gradients' ids by the tensor's name and layer: a backward comes to the last layer first."""
        layers: dict[str, list[int]] = defaultdict(list)
        for stored, layer in self.tensors:
            layers[f"{stored.name} gradient"].append(layer)
        ordered = {name: iter(sorted(numbers, reverse=True)) for name, numbers in layers.items()}
        return {(name, next(ordered[name])): which for name, which in gradients}

    def _groups(self, tensors: Sequence[Each]) -> Iterator[list[Each]]:
        if self.row.low_rank or not self.setup.loop.decay_groups:
            yield list(tensors)
            return
        for _, group in groupby(tensors, lambda each: comes_last(self.row, each[0])):
            yield list(group)

    def _group(self, step: _Step, row: Optimizer, mode: Mode, group: list[Each], born: bool) -> None:
        whole = row.library in GROUP_FIRST
        if born and whole:
            step.states(nbytes for stored, _ in group for nbytes in self.states[id(stored)])
        if mode == "foreach":
            step.actions(row.step[mode], group)
        else:
            for each in group:
                if born and not whole:
                    step.states(self.states[id(each[0])])
                step.actions(actions_of(row, mode, each[0]), [each])
        step.forget()


class _Step:
    """One step under way. `held`: each variable's tensors; those that are made are numbered as they come,
    and have ids when all of them are known.
    """

    def __init__(self, out: Events, made: Mapping[tuple[str, Any], int]) -> None:
        self.out, self.made = out, made
        self.events: list[tuple[str, int]] = []
        self.indices: list[int] = []
        self.held: dict[str, list[int]] = {}
        self.gradients: dict[tuple[str, int], int] = {}  # those that were there, by tensor
        self.kept: list[int] = []  # numbers of what took their place

    def states(self, sizes: Any) -> None:
        self.events += [("state", nbytes) for nbytes in sizes]

    def actions(self, actions: Step, tensors: Sequence[Each]) -> None:
        """A variable's list is made before what it held goes, from its end on as Python frees a list."""
        for action in actions:
            if isinstance(action, Release):
                for stored, layer in tensors:
                    self.events.append(("gone", self.gradients.pop((f"{stored.name} gradient", layer))))
                self.kept += self.held.pop(action.instead)
                continue
            if isinstance(action, Drop):
                for variable in action.variables:
                    self._free(self.held.pop(variable, []))
                continue
            shape = SHAPES[action.shape]
            found = (self.made.get((f"{stored.name} {action.what}", shape(stored))) for stored, _ in tensors)
            made = [self._born(index) for index in found if index is not None]
            if made or len(tensors) > 1:
                old, self.held[action.variable] = self.held.get(action.variable, []), made
                self._free(old)

    def forget(self) -> None:
        """What the variables hold goes with the call that has them."""
        for numbers in self.held.values():
            self._free(numbers)
        self.held.clear()

    def _born(self, index: int) -> int:
        self.indices.append(index)
        self.events.append(("born", len(self.indices) - 1))
        return len(self.indices) - 1

    def _free(self, numbers: Sequence[int]) -> None:
        self.events += [("free", number) for number in reversed(numbers)]

    def end(self, fill: Fill) -> list[int]:
        """Write the events; the ids of the gradients that are left."""
        out, base = self.out, self.out.reserve(len(self.indices))
        if self.indices:
            fill(base, self.indices)
        for what, number in self.events:
            if what == "state":
                out.alloc(number)
            elif what == "gone":
                out.free(number)
            else:
                out.events.append(base + number if what == "born" else ~(base + number))
        return [*self.gradients.values(), *(base + number for number in self.kept)]
