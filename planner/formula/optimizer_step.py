"""What the optimizer's step makes, from the optimizer's row: on the tape, over what is alive after the
backward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from memplan.planner.formula.resident.parameter_spec import ParameterSpec
from memplan.planner.formula.resident.states import (
    BLOCK_8BIT,
    elements_of,
    optimizer_of,
    quantized_by_torchao,
)
from memplan.planner.formula.symbolic.expr import Sized, ceil_div, maximum, minimum
from memplan.planner.formula.tape.tape import Tape, Tensor
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.low_rank import Projector
from memplan.planner.tables.optimizer_row import Optimizer
from memplan.planner.tables.optimizer_steps import Drop, Make, Mode, Release, Step
from memplan.planner.tables.optimizers import OPTIMIZERS

HOW = {
    "foreach": "a list of all trained tensors at once",
    "loop": "one tensor at a time",
    "fused": "one kernel over all trained tensors",
}


def optimizer_step(t: Tape, setup: Setup, trained: Sequence[ParameterSpec]) -> None:
    """Log the temporaries of one step over the tensors that this process updates."""
    row = OPTIMIZERS[setup.optimizer]
    t.scope = ""  # the backward ended in a layer's
    for optimizer in (row, *([OPTIMIZERS[row.others]] if row.others else ())):
        mode: Mode = setup.optimizer_mode if optimizer is row else optimizer.modes[0]
        own = [stored for stored in trained if optimizer_of(row, stored) is optimizer]
        if (optimizer.step[mode] or optimizer.projected) and own:
            (_at_once if mode == "foreach" else _one_by_one)(t, setup, optimizer, mode, own)


def in_backward(t: Tape, setup: Setup, trained: Sequence[ParameterSpec]) -> Callable[[Tensor], None]:
    """What follows a leaf's gradient where each parameter has an optimizer of its own: its step's
    temporaries, then the gradient goes (torchtune 0.6 training/memory.py register_optim_in_bwd_hooks).
    """
    row, by_name = OPTIMIZERS[setup.optimizer], {stored.name: stored for stored in trained}

    def taken(leaf: Tensor) -> None:
        stored = by_name.get(leaf.name)
        if stored is None:
            return
        t.scope = ""  # the tensor's name says all; the backward's next node brings its own
        optimizer = optimizer_of(row, stored)
        mode: Mode = setup.optimizer_mode if optimizer is row else optimizer.modes[0]
        held: dict[str, Tensor] = {}
        for action in actions_of(optimizer, mode, stored):
            if isinstance(action, Release):
                if action.unless != stored.dtype:
                    leaf.grad = None
                continue
            if isinstance(action, Drop):
                _forget(held, action)
                continue
            tensor = _make(t, setup, optimizer, mode, action, stored)
            if tensor is not None:
                held[action.variable] = tensor
            del tensor
        held.clear()
        leaf.grad = None

    return _behind(t, taken) if row.behind else taken


def _behind(t: Tape, taken: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """A leaf is stepped when the next one's gradient has come, the last one of the backward, or of a run of
    equal layers, at its end: there it is a norm, whose next one is not waited for.
    """
    waiting: list[Tensor] = []

    def come() -> None:
        while waiting:
            taken(waiting.pop())

    def next_comes(leaf: Tensor) -> None:
        come()
        waiting.append(leaf)

    t.between = come
    return next_comes


def actions_of(optimizer: Optimizer, mode: Mode, stored: ParameterSpec) -> Step:
    """What the optimizer's step does with one tensor."""
    return optimizer.step[mode] if stored.projector is None else optimizer.projected


def _at_once(t: Tape, setup: Setup, row: Optimizer, mode: Mode, trained: Sequence[ParameterSpec]) -> None:
    """Each variable is a list as long as the trained tensors are many."""
    held: dict[str, list[Tensor]] = {}
    for action in row.step[mode]:
        if not isinstance(action, Make):
            if isinstance(action, Drop):
                _forget(held, action)
            continue
        made = []
        for stored in trained:
            tensor = _make(t, setup, row, mode, action, stored)
            if tensor is not None:
                made.append(tensor)
                t.log.append((-1, {len(t.infos) - 1: stored.count - 1}))
        held[action.variable] = made


def _one_by_one(t: Tape, setup: Setup, row: Optimizer, mode: Mode, trained: Sequence[ParameterSpec]) -> None:
    """Each variable is one tensor, which lasts until the next one's takes its place."""
    held: dict[str, Tensor] = {}
    kept: dict[str, list[Tensor]] = {}  # gradients that took the place of whole ones
    order = list(_in_order(setup, row, trained))
    whole = _gradients(t) if any(isinstance(each, Release) for each in row.projected) else {}
    for place, stored in enumerate(order):
        for action in actions_of(row, mode, stored):
            if isinstance(action, Release):
                # the first of two layers frees its own, the second those of all others
                others = stored.count - 1 if stored not in order[place + 1 :] else 0
                count = others + 1 if stored.count == 1 else others or 1
                t.log.append((-1, _some(whole[f"{stored.name} gradient"], count)))
                low = held.pop(action.instead)
                if low.buffer is not None:
                    low.buffer.info.component = "gradients"
                kept.setdefault(stored.name, []).append(low)
                if others > 1 and low.buffer is not None:
                    t.log.append((-1, {low.buffer.index: others - 1}))
                continue
            if isinstance(action, Drop):
                _forget(held, action)
                continue
            tensor = _make(t, setup, row, mode, action, stored)
            if tensor is not None:
                held[action.variable] = tensor
            del tensor


def _gradients(t: Tape) -> dict[str, dict[int, int]]:
    """The gradients that are there, by name: how many of each of the tape's buffers."""
    alive: Counter[int] = Counter()
    for index, change in t.log:
        alive.update({index: change} if index >= 0 else change)
    found: dict[str, dict[int, int]] = {}
    for index, count in alive.items():
        info = t.infos[index]
        if count > 0 and info.component == "gradients":
            found.setdefault(info.name, {})[index] = count
    return found


def _some(alive: dict[int, int], count: int) -> dict[int, int]:
    """So many of these buffers' deaths, taken off what is alive."""
    gone: dict[int, int] = {}
    for index, many in alive.items():
        gone[index] = -min(many, count)
        alive[index] += gone[index]
        count += gone[index]
    return gone


def _forget(held: dict[str, Tensor] | dict[str, list[Tensor]], action: Drop) -> None:
    for variable in action.variables:
        held.pop(variable, None)


def _in_order(setup: Setup, row: Optimizer, trained: Sequence[ParameterSpec]) -> Iterable[ParameterSpec]:
    """The tensors as an optimizer meets them; two layers stand for all, since a variable lasts from one
    tensor to the next.
    """
    layers = [stored for stored in trained if stored.count > 1]
    first = trained.index(layers[0]) if layers else len(trained)
    after = [stored for stored in trained[first:] if stored.count == 1]
    order = [*trained[:first], *layers, *layers, *after]
    if row.low_rank or setup.loop.decay_groups:
        order.sort(key=partial(comes_last, row))
    return order


def comes_last(row: Optimizer, stored: ParameterSpec) -> bool:
    """Whether a tensor is in the optimizer's second group: what is projected, else what is not decayed
    (transformers 5.24 trainer_optimizer.py _setup_low_rank_optimizer, trainer.py create_optimizer).
    """
    return stored.projector is not None if row.low_rank else stored.role in ("norm", "bias")


def _make(
    t: Tape, setup: Setup, row: Optimizer, mode: Mode, action: Make, stored: ParameterSpec
) -> Tensor | None:
    """The tensor of one action for one trained tensor; None where that is in the wanted dtype already, or
    its states are not quantized.
    """
    if action.unless == stored.dtype:
        return None
    if action.quantized and not quantized_by_torchao(elements_of(stored, setup)):
        return None
    shape = SHAPES[action.shape](stored)
    dtype = stored.dtype if action.dtype == "like" else action.dtype
    why = f"{row.name}: {HOW[mode]} ({row.source})"
    return t.alloc(f"{stored.name} {action.what}", shape, dtype, why, "temporaries")


def _projector(stored: ParameterSpec) -> Projector:
    assert stored.projector is not None
    return stored.projector


def _gram(stored: ParameterSpec) -> tuple[Sized, ...]:
    """The shape of a matrix times its transpose, over its shorter side."""
    side = minimum(*stored.shape)
    return side, side


SHAPES: dict[str, Callable[[ParameterSpec], tuple[Sized, ...]]] = {
    "like": lambda stored: stored.shape,
    "gram": _gram,
    "blocks": lambda stored: (ceil_div(stored.elements, BLOCK_8BIT),),
    "low": lambda stored: stored.low.shape,
    "basis": lambda stored: stored.vectors(_projector(stored).right, _projector(stored).rank),
    "square": lambda stored: (_projector(stored).rank,) * 2,
    "left": lambda stored: stored.vectors(False),
    "values": lambda stored: (minimum(*stored.shape),),
    "right": lambda stored: stored.vectors(True),
    "channels": lambda stored: (maximum(*stored.shape),),
}
"""The shapes of Make."""
