"""Calls of kernels, kept beside what they allocated: asked again with other sizes, the rules of
device/kernels_table.py say what the same call takes there, with their own ceilings and guards.

A call is an op, a template (everything but whole numbers) and the numbers: shapes, strides, lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memplan.planner.trace.device.rule import Workspace
from memplan.planner.trace.events.log import OF_CALL
from memplan.planner.trace.kernels import Kernels, name_of
from memplan.planner.trace.observe import Observer
from memplan.planner.trace.op_tensors import WorkspaceLike

CALL = "call"
"""The op of a storage of no bytes that stands for a call: made before its first allocation, freed after its
last.
"""


@dataclass(frozen=True, slots=True)
class Call:
    """One op with its arguments and outputs. `template`: nested tuples, JSON's own types in them; each "int"
    in it is the next of `numbers`.
    """

    op: str
    template: tuple[Any, ...]
    numbers: tuple[int, ...]

    @classmethod
    def of(cls, op: Any, args: Sequence[Any], outputs: Sequence[torch.Tensor]) -> Call:
        """The call as it was made."""
        numbers: list[int] = []
        seen: dict[int, int] = {}
        template = tuple(_kept(part, numbers, seen) for part in (tuple(args), tuple(outputs)))
        return cls(name_of(op), template, tuple(numbers))

    def workspaces(self, kernels: Kernels) -> list[Workspace]:
        """What it takes beyond its outputs and gives back, in the order in which it is made."""
        numbers = iter(self.numbers)
        known: list[torch.Tensor] = []
        args, outputs = (_made(part, numbers, known) for part in self.template)
        return [made for made in kernels(self.op, tuple(args), outputs) if not made.persistent]


def _kept(value: Any, numbers: list[int], seen: dict[int, int]) -> Any:
    """A value without its numbers; tensors that are one are told so, what no rule reads is left out."""
    if isinstance(value, torch.Tensor):
        if id(value) in seen:
            return ("same", seen[id(value)])
        seen[id(value)] = len(seen)
        if value.layout != torch.strided:
            return ("other",)
        numbers += [*value.shape, *value.stride()]
        return ("tensor", value.dim(), str(value.dtype).removeprefix("torch."), value.requires_grad)
    if isinstance(value, (list, tuple)):
        return ("list", *(_kept(each, numbers, seen) for each in value))
    if isinstance(value, torch.dtype):
        return ("dtype", str(value).removeprefix("torch."))
    if isinstance(value, int) and not isinstance(value, bool):
        numbers.append(value)
        return "int"
    return ("plain", value) if value is None or isinstance(value, (bool, float, str)) else ("other",)


def _made(kept: Any, numbers: Iterator[int], known: list[torch.Tensor]) -> Any:
    if kept == "int":
        return next(numbers)
    match kept:
        case ("tensor", dims, dtype, grad):
            shape, stride = ([next(numbers) for _ in range(dims)] for _ in range(2))
            made = torch.empty_strided(shape, stride, dtype=getattr(torch, dtype), device="meta")
            known.append(made.requires_grad_(grad))
            return made
        case ("same", number):
            return known[number]
        case ("list", *parts):
            return [_made(each, numbers, known) for each in parts]
        case ("dtype", name):
            return getattr(torch, name)
        case ("plain", value):
            return value
        case _:
            return None


class CallObserver(Observer):
    """An observer whose log has the calls too."""

    def _may_hide(self, func: Any, args: tuple[Any, ...]) -> bool:
        assert isinstance(self.kernels, Kernels)
        return self.kernels.hides(func) and not self._on_host(args)

    def _count(
        self, func: Any, args: tuple[Any, ...], outputs: Any, fresh: bool, workspaces: Sequence[Any]
    ) -> None:
        if not self._may_hide(func, args):
            super()._count(func, args, outputs, fresh, workspaces)
            return
        where, layers = self._place(args, len(outputs))
        home = layers[0] if layers else self._layer
        sid = self._record(0, CALL, where, home, (), "uint8", home, "temporaries")
        self.log.storages[sid].call = Call.of(func, args, outputs)
        super()._count(func, args, outputs, fresh, workspaces)
        self.drop(sid)

    def _workspace(self, made: WorkspaceLike, where: str, layer: int | None) -> tuple[int, WorkspaceLike]:
        sid, made = super()._workspace(made, where, layer)
        if not made.persistent:
            self.log.storages[sid].call = OF_CALL
        return sid, made
