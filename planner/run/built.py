"""Built: everything that one training step needs; Watcher: what build and step tell whoever watches."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from memplan.planner.inputs.setup import Setup


class Announcer(Protocol):
    """Whoever watches a step: `announce(moment, step)` brackets each moment."""

    def announce(self, moment: str, step: int = -1) -> AbstractContextManager[None]:
        """Around a part of the step: the moment that allocations inside belong to."""
        ...


class Watcher(Protocol):
    """What build tells whoever watches: where an allocation belongs, and which tensors are made on the
    host.
    """

    def announce(self, moment: str, step: int = -1) -> AbstractContextManager[None]:
        """Around a part of the build or the step: the moment that allocations inside belong to."""
        ...

    def scope(self, module: str, layer: int | None) -> AbstractContextManager[None]:
        """Around what is built for one module: its name, and its layer where it is in one."""
        ...

    def on_host(self) -> AbstractContextManager[None]:
        """Around work on the host, which allocates nothing on the device."""
        ...

    def reading(self) -> AbstractContextManager[None]:
        """Around what arrives from the checkpoint."""
        ...

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor as it is on the device."""
        ...

    def empty_cache(self) -> None:
        """Note that the allocator's cache is emptied here."""
        ...

    def side_stream(self) -> AbstractContextManager[None]:
        """Around what another stream than the computing one asks for."""
        ...

    def keep_on_host(self, tensor: torch.Tensor, nbytes: int) -> torch.Tensor:
        """Count `nbytes` of host memory for as long as `tensor` lives; returns it."""
        ...

    def number_of(self, tensor: torch.Tensor) -> int:
        """A number of the tensor's storage that no other one has or had."""
        ...


class NoWatcher:
    """Builds on a real device without anybody watching."""

    def announce(self, moment: str, step: int = -1) -> AbstractContextManager[None]:
        """Nothing is watched."""
        return nullcontext()

    def scope(self, module: str, layer: int | None) -> AbstractContextManager[None]:
        """Nothing is watched."""
        return nullcontext()

    def on_host(self) -> AbstractContextManager[None]:
        """Nothing is watched."""
        return nullcontext()

    def reading(self) -> AbstractContextManager[None]:
        """Nothing is watched."""
        return nullcontext()

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return tensor

    def empty_cache(self) -> None:
        """Nothing is watched."""
        return

    def side_stream(self) -> AbstractContextManager[None]:
        """Nothing is watched."""
        return nullcontext()

    def keep_on_host(self, tensor: torch.Tensor, nbytes: int) -> torch.Tensor:
        """The tensor itself."""
        return tensor

    def number_of(self, tensor: torch.Tensor) -> int:
        """Its address, which another one may have later."""
        return int(tensor.untyped_storage()._cdata)


def _nothing() -> None:
    return


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
    offloading: Callable[[], AbstractContextManager[Any]] = nullcontext  # around each forward and backward
    waiting: tuple[
        dict[str, torch.Tensor], ...
    ] = ()  # micro-batches of the same optimizer step that the stack has fetched already
    reference: nn.Module | None = None  # the second model that a task's loss compares with
    companions: dict[str, nn.Module] = field(
        default_factory=dict
    )  # models of other configs beside the trained one: Setup field -> model
    rollout: dict[str, torch.Tensor] = field(
        default_factory=dict
    )  # what the model sampled last, of which each micro-step takes its rows
    colocated: torch.Tensor | None = None  # what a server in the same process holds all along
    held: Any = None  # outputs that outlive their step
    warnings: tuple[str, ...] = ()  # what of the load could not be modeled
    empty_cache: Callable[[], None] = _nothing  # gives back what the allocator has cached
    own: frozenset[int] = frozenset()  # id of each parameter that the checkpoint holds, adapters' excluded

    @property
    def parameters(self) -> int:
        """Parameters that the checkpoint holds; a 4-bit weight counts its logical elements."""
        return sum(logical_numel(p) for p in self.model.parameters() if id(p) in self.own)


def logical_numel(parameter: torch.Tensor) -> int:
    """Elements of a parameter, those of the original where it is packed into 4 bits."""
    state = getattr(parameter, "quant_state", None)
    return math.prod(state.shape) if state is not None else parameter.numel()
