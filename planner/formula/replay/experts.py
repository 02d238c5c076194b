"""Experts that a checkpoint holds apart, read and merged: transformers' MergeModulelist and Concatenate.

Threads read ahead in the order of the checkpoint's names, so that of every expert all its weights come before
the next expert's; the main thread merges a parameter when its last part is there. A load that quantizes reads
one parameter's parts when it comes to it (transformers 5.24 core_model_loading.py
convert_and_load_state_dict_in_model: `thread_pool = None`).
"""

from __future__ import annotations

from collections import defaultdict

from memplan.planner.formula.replay.events import Events
from memplan.planner.formula.resident.parameter_spec import ParameterSpec

GATE_UP, DOWN = "gate_up_proj", "down_proj"
PARTS = {GATE_UP: ("gate", "up"), DOWN: ("down",)}
"""The parts that a parameter of all experts is merged of."""
IN_ORDER = {"mixtral": ("gate", "down", "up")}  # w1, w2, w3
USUAL = ("down", "gate", "up")  # down_proj, gate_proj, up_proj


class Experts:
    """The experts of one load. `threaded`: whether threads read ahead; `count` experts a layer."""

    def __init__(self, out: Events, model_type: str, count: int, *, threaded: bool) -> None:
        self.out, self.count, self.threaded = out, count, threaded
        self.order = IN_ORDER.get(model_type, USUAL)
        self.read: dict[int, int] = defaultdict(int)  # how many tensors of a layer are there
        self.parts: dict[tuple[int, str], list[int]] = defaultdict(list)

    def merge(self, stored: ParameterSpec, layer: int, nbytes: dict[str, int]) -> int:
        """Read what is missing of a parameter and merge it; its id. `nbytes`: of each parameter of all
        experts, by the end of its name.
        """
        own = end_of(stored)
        self._read(layer, own, nbytes)
        stacked = []
        for part in PARTS[own]:
            stacked.append(self.out.alloc(nbytes[own] // len(PARTS[own])))
            self.out.free(*reversed(self.parts.pop((layer, part))))
        if len(stacked) == 1:
            return stacked[0]
        whole = self.out.alloc(nbytes[own])
        self.out.free(*stacked)
        return whole

    def _read(self, layer: int, own: str, nbytes: dict[str, int]) -> None:
        """The next tensors of a layer, up to the last that this parameter is made of."""
        if not self.threaded:
            for part in PARTS[own]:
                self._part(layer, part, nbytes, self.count)
            return
        last = max(self.order.index(part) for part in PARTS[own])
        needed = (self.count - 1) * len(self.order) + last + 1
        for place in range(self.read[layer], needed):
            self._part(layer, self.order[place % len(self.order)], nbytes, 1)
        self.read[layer] = max(self.read[layer], needed)

    def _part(self, layer: int, part: str, nbytes: dict[str, int], times: int) -> None:
        whole = next(name for name, parts in PARTS.items() if part in parts)
        each = nbytes[whole] // len(PARTS[whole]) // self.count
        self.parts[layer, part] += [self.out.alloc(each) for _ in range(times)]


def end_of(stored: ParameterSpec) -> str:
    """The last part of a parameter's name."""
    return stored.name.rpartition(".")[2]
