"""Which layers of a model repeat, which few of them are kept, and which of those stands for each of the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

COPIES = 3  # repeats kept of a run: first, middle, last
LONGEST_PERIOD = 16
_POSITION = ("layer_idx", "layer_id", "layer_number", "idx", "training", "memplan_index")


@dataclass(frozen=True, slots=True)
class Run:
    """`repeats` blocks of `period` equal layers, from layer `start` on."""

    start: int
    period: int
    repeats: int

    @property
    def reducible(self) -> bool:
        """Whether the run is long enough that a shorter one stands for it."""
        return self.repeats > COPIES + 1

    def kept(self, extra: int = 0) -> int:
        """How many layers of the run are traced."""
        return COPIES + extra if self.reducible else self.repeats


def signatures(layers: nn.ModuleList, marks: Callable[[int], Any] = lambda index: None) -> list[Any]:
    """What distinguishes each layer: its tree of classes, tensors and settings, and `marks(index)` (a setup's
    view of that layer).
    """
    return [(_signature(layer), marks(index)) for index, layer in enumerate(layers)]


def _signature(layer: nn.Module) -> tuple[Any, ...]:
    return tuple(
        (
            path,
            type(module).__name__,
            tuple(
                (k, tuple(t.shape), t.dtype)
                for store in (module._parameters, module._buffers)
                for k, t in store.items()
                if t is not None
            ),
            tuple(
                sorted(
                    (k, v)
                    for k, v in vars(module).items()
                    if k not in _POSITION and isinstance(v, (int, str, float))
                )
            ),
        )
        for path, module in layer.named_modules()
    )


def runs(signs: Sequence[Any]) -> list[Run]:
    """The layers as consecutive runs of repeats; at each place the period that covers most, the shortest of
    equals.
    """
    numbers: dict[Any, int] = {}
    ids = [numbers.setdefault(sign, len(numbers)) for sign in signs]
    found: list[Run] = []
    at = 0
    while at < len(ids):
        best = Run(at, 1, 1)
        for period in range(1, min(LONGEST_PERIOD, len(ids) - at) + 1):
            block, repeats = ids[at : at + period], 1
            while ids[at + repeats * period : at + (repeats + 1) * period] == block:
                repeats += 1
            if repeats > COPIES + 1 and period * repeats > best.period * best.repeats:
                best = Run(at, period, repeats)
        found.append(best)
        at += best.period * best.repeats
    return found


def kept_layers(layout: Sequence[Run], longer: int | None = None) -> list[int]:
    """Indices of the layers to build; run number `longer` keeps one repeat more."""
    return [
        run.start + i
        for number, run in enumerate(layout)
        for i in range(run.period * run.kept(number == longer))
    ]


def templates(layout: Sequence[Run], full: bool, longer: int | None = None) -> list[int]:
    """For each layer of the target (the full model, or the small one with run `longer` extended) the small
    model's layer that stands for it.
    """
    found: list[int] = []
    base = 0
    for number, run in enumerate(layout):
        small = run.kept()
        count = run.repeats if full else run.kept(number == longer)
        for block in range(count):
            stand_in = block if count == small or block == 0 else small - 1 if block == count - 1 else 1
            found += [base + stand_in * run.period + i for i in range(run.period)]
        base += small * run.period
    return found
