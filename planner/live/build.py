"""Config + Setup + device -> model, adapter, optimizer, batch: the same code on meta, cuda and cpu.

The model's classes are transformers', the adapters peft's, the quantised layers bitsandbytes'. Weights are random and made on the device
one by one, so that the allocator sees what it would see in a real load; their values move no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from planner.live import adapters, attention, batches, losses
from planner.live.model import layer_number, layer_prefix, quiet, skeleton
from planner.live.optimizer import make_optimizer
from planner.live.quantise import quantise, replace_linears
from planner.setup import Setup


class Watcher(Protocol):
    """What build tells whoever watches: where an allocation belongs, and which tensors are made on the host."""

    def announce(self, moment: str, step: int = -1) -> AbstractContextManager[None]: ...
    def scope(self, module: str, layer: int | None) -> AbstractContextManager[None]: ...
    def on_host(self) -> AbstractContextManager[None]: ...
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
    kernels: Callable[[], AbstractContextManager[Any]] = nullcontext  # the attention backend that the setup forces
    held: Any = None  # outputs that outlive their step
    own: frozenset[int] = frozenset()  # id of each parameter that the checkpoint holds, adapters' excluded

    def forward(self) -> Any:
        return losses.forward(self)

    @property
    def parameters(self) -> int:
        """Parameters that the checkpoint holds; a 4-bit weight counts its logical elements."""
        return sum(logical_numel(p) for p in self.model.parameters() if id(p) in self.own)


def logical_numel(parameter: torch.Tensor) -> int:
    """Elements of a parameter, those of the original where it is packed into 4 bits."""
    state = getattr(parameter, "quant_state", None)
    return math.prod(state.shape) if state is not None else parameter.numel()


def outline(config: Mapping[str, Any], setup: Setup, device: str) -> nn.Module:
    """The model for `device`, every tensor still an unallocated placeholder."""
    return skeleton(config, setup.weight_dtype, attention.implementation(setup.attention, device))


def build(config: Mapping[str, Any], setup: Setup, device: str, *, watcher: Watcher | None = None,
          model: nn.Module | None = None) -> Built:  # fmt: skip
    """Model, adapter, optimizer and batch of `config` under `setup` on `device` ("meta", "cuda" or "cpu").

    `model` is an `outline` made before (the trace prunes its layers). Raises UsageError where a library rejects the
    config, the adapter or the method.
    """
    watcher = watcher or NoWatcher()
    where = torch.device(device)
    if model is None:
        model = outline(config, setup, device)
    with watcher.on_host(), quiet():
        replace_linears(model, setup)
    with quiet():
        with watcher.announce("load"):
            materialise(model, setup, where, watcher)
        base, own = model, frozenset(id(p) for p in model.parameters())
        with watcher.announce("load"):
            model = adapters.prepare(base, setup, where, watcher)
        trainable = [p for p in model.parameters() if p.requires_grad]
        model.train(setup.method != "inference")
        with watcher.announce("load"):
            optimizer = make_optimizer(model, setup) if trainable else None
            batch = batches.make(base.config, setup, where)
    return Built(setup, device, base.config, base, model, trainable, optimizer, batch, rank_allocator=adapters.rank_allocator(model, setup),
                 autocast=_autocast(setup, device), kernels=_kernels(setup, device), own=own)  # fmt: skip


def _autocast(setup: Setup, device: str) -> Callable[[], AbstractContextManager[Any]]:
    if setup.autocast == "none":
        return nullcontext
    return lambda: torch.autocast(device, dtype=getattr(torch, setup.autocast))


def _kernels(setup: Setup, device: str) -> Callable[[], AbstractContextManager[Any]]:
    return nullcontext if device == "meta" else lambda: attention.on_device(setup.attention)


def materialise(model: nn.Module, setup: Setup, device: torch.device, watcher: Watcher) -> None:
    """Allocate every parameter and buffer on the device, quantised layers quantised as they are made; ties are kept.

    Order: `random` as memplan's own loader goes (quantised layers, then module by module); `pretrained` as transformers does
    (one block of the model's size first, then sorted by name; transformers 5.23 core_model_loading.py, caching_allocator_warmup).
    """
    prefix = layer_prefix(model)
    made: dict[int, torch.Tensor] = {}

    def one(module: nn.Module, store: dict[str, Any], key: str, name: str) -> None:
        with watcher.scope(name, layer_number(prefix, name)):
            tensor = store[key]
            if hasattr(tensor, "memplan_dtype"):
                quantise(module, setup, device)
            else:
                if id(tensor) not in made:
                    made[id(tensor)] = _real(tensor, device)
                    keep.append(tensor)
                store[key] = made[id(tensor)]

    keep: list[torch.Tensor] = []
    if setup.load == "pretrained" and device.type != "cpu":
        _warm_up(model, setup, device)
    for module, store, key, name in list(_slots(model, setup)):
        one(module, store, key, name)
    _rotary(model, device)


def _slots(model: nn.Module, setup: Setup) -> Iterable[tuple[nn.Module, dict[str, Any], str, str]]:
    """Where each tensor hangs, in loading order: (module, its dict, key, full name)."""
    slots = [
        (module, store, key, f"{path}.{key}" if path else key)
        for path, module in model.named_modules()
        for store in (module._parameters, module._buffers)
        for key, tensor in store.items()
        if tensor is not None and tensor.device.type == "meta"
    ]
    if setup.load == "random":
        return sorted(slots, key=lambda slot: not hasattr(slot[1][slot[2]], "memplan_dtype"))
    return sorted(slots, key=lambda slot: (slot[1] is slot[0]._buffers, _natural(slot[3])))


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Numbers in a dotted name sort as numbers (transformers 5.23 core_model_loading.py dot_natural_key)."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]


def _real(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    made = torch.empty_like(tensor, device=device)
    if device.type != "meta":
        made.normal_(0, 0.02) if made.is_floating_point() else made.zero_()
    return nn.Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


_ELEMENT = {"nf4": 0.5, "fp4": 0.5, "int8": 1.0}
"""Bytes that transformers counts per element to be quantised (transformers 5.23 quantizers/quantizer_bnb_{4,8}bit.py
quantized_element_size)."""


def _warm_up(model: nn.Module, setup: Setup, device: torch.device) -> None:
    """One block of the size of what will be loaded; freed at once, it stays reserved (transformers 5.23 modeling_utils.py
    get_total_byte_count)."""
    sizes: dict[int, float] = {}
    for module in model.modules():
        stores = (module._parameters, {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set})
        for tensor in (t for store in stores for t in store.values() if t is not None):
            sizes[id(tensor)] = tensor.numel() * (_ELEMENT[setup.quant_type] if hasattr(tensor, "memplan_dtype") else tensor.element_size())
    torch.empty(int(sum(sizes.values()) // 2), dtype=torch.float16, device=device)


def _rotary(model: nn.Module, device: torch.device) -> None:
    """Rotary tables must be sane numbers on a real device: inverse frequencies, computed on the host and copied in."""
    if device.type == "meta":
        return
    for module in model.modules():
        for name in ("inv_freq", "original_inv_freq"):
            table = getattr(module, name, None)
            if isinstance(table, torch.Tensor):
                count = table.numel()
                table.copy_((1.0 / (10000 ** (torch.arange(count).float() / count))).view_as(table))
