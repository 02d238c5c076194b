"""What is told of a step while it is traced: its moments, and the modules whose code runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from memplan.planner.run.model import layer_number, layer_prefix
from memplan.planner.tables.progress import tell
from memplan.planner.trace.observe import Observer

STEPS = 2  # optimizer states appear in the first: the second is the steady one


class Told:
    """An announcer that also tells each moment, as progress."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def announce(self, moment: str, step: int = -1) -> AbstractContextManager[None]:
        """The observer's bracket around a moment."""
        tell(_where(step, moment))
        return self._observer.announce(moment, step)


def _where(step: int, moment: str) -> str:
    return f"step {step + 1} of {STEPS}, {moment.replace('_', ' ')}"


@contextmanager
def named_modules(observer: Observer, model: torch.nn.Module, *others: torch.nn.Module) -> Iterator[None]:
    """Keep the observer's stack of running modules, each of `model` and of `others` by the layer of its own
    that it is in, through torch's global module hooks (exceptions included:
    checkpointing stops early).
    """
    table: dict[int, tuple[str, int | None]] = {}
    for each in (model, *others):
        prefix = layer_prefix(each)
        table |= {id(m): (name, layer_number(prefix, name)) for name, m in each.named_modules()}
    stack = observer.modules
    hooks = torch.nn.modules.module
    layers = 1 + max((layer for _, layer in table.values() if layer is not None), default=0)
    told: int | None = None

    def enter(module: torch.nn.Module, args: Any) -> None:
        nonlocal told
        observer.inherited = None
        stack.append(entered := table.get(id(module), ("", None)))
        if (layer := entered[1]) is not None and layer != told and observer.log.marks:
            told = layer
            tell(f"{_where(observer.log.marks[-1].step, observer.moment)}, layer {layer + 1} of {layers}")

    def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
        observer.inherited = None
        stack.pop()

    with ExitStack() as undo:
        undo.callback(hooks.register_module_forward_pre_hook(enter).remove)
        undo.callback(hooks.register_module_forward_hook(leave, always_call=True).remove)
        yield
