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


def prune(
    parent: nn.Module, name: str, layers: nn.ModuleList, keep: Sequence[int], configs: Sequence[Any]
) -> None:
    """Leave only the layers `keep` in the model, renumbered; each remembers its place as `memplan_index`."""
    depth = len(layers)
    for new, old in enumerate(keep):
        layers[old].memplan_index = old  # type: ignore[assignment]
        for module in layers[old].modules():
            for key in ("layer_idx", "layer_id"):
                if vars(module).get(key) == old:
                    setattr(module, key, new)
    setattr(parent, name, nn.ModuleList([layers[index] for index in keep]))
    for config in configs:
        for key, value in list(vars(config).items()):
            if isinstance(value, (list, tuple)) and len(value) == depth:
                config.__dict__[key] = type(value)(value[index] for index in keep)
            elif key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") and value == depth:
                config.__dict__[key] = len(keep)


def configs_around(model: Any, path: str) -> list[Any]:
    """The configurations that the modules around a path were made from; those of other parts (a tower of as
    many layers) are left as they are.
    """
    parts = path.split(".")
    around = (model.get_submodule(".".join(parts[:count])) for count in range(len(parts)))
    found = {
        id(config): config for module in around if (config := getattr(module, "config", None)) is not None
    }
    return list(found.values())
