"""Built: everything that one training step needs; Watcher: what build and step tell whoever watches."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from memplan.planner.inputs.setup import Setup


class Watcher(Protocol):
    """What build tells whoever watches: where an allocation belongs, and which tensors are made on the host."""

    def announce(self, moment: str, step: int = -1) -> AbstractContextManager[None]: ...
    def scope(self, module: str, layer: int | None) -> AbstractContextManager[None]: ...
    def on_host(self) -> AbstractContextManager[None]: ...
    def reading(self) -> AbstractContextManager[None]: ...
    def to_device(self, tensor: torch.Tensor) -> torch.Tensor: ...
    def empty_cache(self) -> None: ...


class NoWatcher:
    """Builds on a real device without anybody watching."""

    def announce(self, moment: str, step: int = -1) -> AbstractContextManager[None]:
        return nullcontext()

    def scope(self, module: str, layer: int | None) -> AbstractContextManager[None]:
        return nullcontext()

    def on_host(self) -> AbstractContextManager[None]:
        return nullcontext()

    def reading(self) -> AbstractContextManager[None]:
        return nullcontext()

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def empty_cache(self) -> None:
        return None


@dataclass
class Built:
    """Everything that one training step needs, on one device."""

    setup: Setup
    device: str
    config: Any
    base: nn.Module  # the transformers model
    model: nn.Module  # what the loop calls: `base`, or peft's wrapper around it
    trainable: list[nn.Parameter]
    optimizer: Any
    batch: dict[str, torch.Tensor]
    rank_allocator: Callable[[int], None] | None = None
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    kernels: Callable[[], AbstractContextManager[Any]] = (
        nullcontext  # the attention backend that the setup forces
    )
    waiting: tuple[
        dict[str, torch.Tensor], ...
    ] = ()  # micro-batches of the same optimizer step that the stack has fetched already
    held: Any = None  # outputs that outlive their step
    warnings: tuple[str, ...] = ()  # what of the load could not be modeled
    own: frozenset[int] = frozenset()  # id of each parameter that the checkpoint holds, adapters' excluded

    @property
    def parameters(self) -> int:
        """Parameters that the checkpoint holds; a 4-bit weight counts its logical elements."""
        return sum(logical_numel(p) for p in self.model.parameters() if id(p) in self.own)


def logical_numel(parameter: torch.Tensor) -> int:
    """Elements of a parameter, those of the original where it is packed into 4 bits."""
    state = getattr(parameter, "quant_state", None)
    return math.prod(state.shape) if state is not None else parameter.numel()
