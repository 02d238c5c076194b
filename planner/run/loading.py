"""Weights arrive on the device: made layer by layer, or as transformers' from_pretrained reads, converts and
quantizes a checkpoint.

`pretrained` follows transformers 5.17 to 5.23 (core_model_loading.py convert_and_load_state_dict_in_model):
one block of the model's size is taken and dropped, then the checkpoint's tensors are read in the natural
order of their names, each transform as soon as its tensors are there. A transform that makes one parameter of
several tensors (experts stored one by one) is the library's own object, at work on these tensors: its copies
are seen like any other. Threads read ahead of it, except where weights are quantized as they arrive;
`planner/trace/events/load_orders.py` has what that changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from memplan.planner.inputs.setup import Setup
from memplan.planner.run.model import layer_number, layer_prefix
from memplan.planner.run.quantize import quantize, quantize_expert, quantizes_expert


class Reader(Protocol):
    """What loading tells whoever watches."""

    def scope(self, module: str, layer: int | None) -> AbstractContextManager[None]:
        """Around what is read for one module: its name, and its layer where it is in one."""
        ...

    def on_host(self) -> AbstractContextManager[None]:
        """Around work on the host, which allocates nothing on the device."""
        ...

    def reading(self) -> AbstractContextManager[None]:
        """Around what arrives from the checkpoint."""
        ...

    def empty_cache(self) -> None:
        """Note that the allocator's cache is emptied here."""
        ...


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tensor hangs: `store` is its module's dict of parameters or buffers."""

    module: nn.Module
    store: dict[str, Any]
    key: str
    name: str

    @property
    def tensor(self) -> Any:
        """The tensor that is in this slot now."""
        return self.store[self.key]

    @property
    def persistent(self) -> bool:
        """Whether the tensor is part of the checkpoint: a parameter, or a persistent buffer."""
        return (
            self.store is self.module._parameters or self.key not in self.module._non_persistent_buffers_set
        )


@dataclass(slots=True)
class LoadStep:
    """One transform: the tensors of the checkpoint that it waits for, and the library's converter (None: it
    only takes its one tensor).
    """

    name: str  # the model's first tensor that it makes
    sources: list[tuple[str, str, Tensor]] = field(
        default_factory=list
    )  # name in the checkpoint, the converter's pattern, a placeholder
    converter: Any = None
    read: dict[str, Tensor] = field(default_factory=dict)


NOT_MERGED = (
    "transformers' conversion of this checkpoint could not be run: tensors that it merges while loading "
    "(experts stored one "
    "by one) are predicted as if stored merged, and load_peak lacks the copies"
)


def materialize(model: nn.Module, setup: Setup, device: torch.device, watcher: Reader) -> list[str]:
    """Allocate every parameter and buffer on the device, quantized layers quantized as they are made; ties
    are kept.

    Returns warnings: what of the load could not be modeled.
    """
    warnings: list[str] = []
    if setup.load == "random":
        _made_here(model, setup, device, watcher)
    else:
        if device.type != "cpu" and not setup.quantize_experts:
            _warm_up(model, setup, device)
        warnings = _Loader(model, setup, device, watcher).run()
    _rotary(model, device)
    return warnings


def slots_of(model: nn.Module) -> list[Slot]:
    """Every tensor that is still a placeholder, module by module."""
    return [
        Slot(module, store, key, f"{path}.{key}" if path else key)
        for path, module in model.named_modules()
        for store in (module._parameters, module._buffers)
        for key, tensor in store.items()
        if tensor is not None and tensor.device.type == "meta"
    ]


def _made_here(model: nn.Module, setup: Setup, device: torch.device, watcher: Reader) -> None:
    """memplan's own order: quantized layers first, then module by module."""
    prefix = layer_prefix(model)
    made: dict[int, tuple[Any, Any]] = {}
    for slot in sorted(slots_of(model), key=lambda slot: not hasattr(slot.tensor, "memplan_dtype")):
        with watcher.scope(slot.name, layer_number(prefix, slot.name)):
            old = slot.tensor
            if hasattr(old, "memplan_dtype"):
                quantize(slot.module, setup, _real(old, device))
            elif quantizes_expert(slot.name, old, setup):
                quantize_expert(slot.module, slot.key, setup, _real(old, device))
            else:
                if id(old) not in made:
                    made[id(old)] = (_like(old, _real(old, device)), old)
                slot.store[slot.key] = made[id(old)][0]


class _Loader:
    """One from_pretrained: reads and finishes steps in the library's order."""

    def __init__(self, model: nn.Module, setup: Setup, device: torch.device, watcher: Reader) -> None:
        self.setup, self.device, self.watcher, self.prefix = setup, device, watcher, layer_prefix(model)
        self.model = model
        self.ties: dict[int, list[Slot]] = {}
        for slot in slots_of(model):
            self.ties.setdefault(id(slot.tensor), []).append(slot)
        self.waiting = {slots[0].name: slots for slots in self.ties.values()}

    def run(self) -> list[str]:
        stored = {name: slots[0].tensor for name, slots in self.waiting.items() if slots[0].persistent}
        with self.watcher.on_host():
            steps = steps_of(self.model, stored)
        warnings = [] if steps is not None else [NOT_MERGED]
        if steps is None:
            steps = _plain(stored)
        for step in self._read(steps):
            self._finish(step)
        for name in sorted(self.waiting):  # what no checkpoint holds
            with self.watcher.scope(name, layer_number(self.prefix, name)):
                self._place(name, _real(self.waiting[name][0].tensor, self.device))
        return warnings

    def _read(self, steps: list[LoadStep]) -> Iterator[LoadStep]:
        """Steps as they become ready. Quantized on the way: each reads its own tensors; else all are read in
        the order of their names, and the main thread finishes a step once the last of its tensors is there.
        """
        sources = [(step, source) for step in steps for source in step.sources]
        if self.setup.quant_type == "none":
            sources.sort(key=lambda pair: _natural(pair[1][0]))
        ahead = iter(steps)
        due = next(ahead, None)
        for step, (key, _, placeholder) in sources:
            with self.watcher.scope(key, layer_number(self.prefix, step.name)), self.watcher.reading():
                step.read[key] = _real(placeholder, self.device)
            while due is not None and len(due.read) == len(due.sources):
                yield due
                due = next(ahead, None)

    def _finish(self, step: LoadStep) -> None:
        with self.watcher.scope(step.name, layer_number(self.prefix, step.name)):
            if step.converter is None:
                self._place(step.name, step.read.pop(step.sources[0][0]))
                return
            for key, pattern, _ in step.sources:
                step.converter.add_tensor(step.name, key, pattern, step.read.pop(key))
            converted = step.converter.convert(step.name, model=self.model, config=self.model.config)
            for name in list(converted):
                made = converted.pop(name)
                self._place(name, made[0] if isinstance(made, list) else made)

    def _place(self, name: str, made: Tensor) -> None:
        slots = self.waiting.pop(name)
        old = slots[0].tensor
        if hasattr(old, "memplan_dtype"):
            quantize(slots[0].module, self.setup, made, pretrained=True)
            return
        if quantizes_expert(name, old, self.setup):
            quantize_expert(slots[0].module, slots[0].key, self.setup, made)
            made.data = torch.empty(0, dtype=made.dtype, device=made.device)  # whoever else holds it
            self.watcher.empty_cache()
            return
        made = _like(old, made)
        for slot in slots:
            slot.store[slot.key] = made


def steps_of(model: Any, stored: dict[str, Tensor]) -> list[LoadStep] | None:
    """The transforms of loading `stored` (the model's tensors by name), in the order in which transformers
    finishes them.

    What the checkpoint holds instead is the library's own answer: its conversion mapping, reversed. None
    where that fails, or does not lead back to the model.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
        revert_weight_conversion,
    )

    conversions = [
        c for c in get_model_conversion_mapping(model, add_legacy=False) if type(c).__name__ != "PrefixChange"
    ]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    if not converters:
        return _plain(stored)
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    try:
        checkpoint = revert_weight_conversion(model, dict(stored))
    except Exception:  # whatever a quantized or unusual model makes the library's many operations raise
        return None
    steps: dict[str, LoadStep] = {}
    for key in sorted(checkpoint, key=_natural):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, stored)
        if name not in stored and key in stored:
            name, pattern = key, None
        if name not in stored:
            return None
        if name not in steps:
            steps[name] = LoadStep(name, converter=deepcopy(by_pattern[pattern]) if pattern else None)
        steps[name].sources.append((key, pattern or key, checkpoint[key]))
    return list(steps.values())


def _plain(stored: dict[str, Tensor]) -> list[LoadStep]:
    return [LoadStep(name, [(name, name, stored[name])]) for name in sorted(stored, key=_natural)]


def _natural(name: str) -> Any:
    from transformers.core_model_loading import dot_natural_key

    return dot_natural_key(name)


def _real(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor like a placeholder on the device, in the dtype that it has before it is quantized; random
    values where they are real.
    """
    dtype = getattr(tensor, "memplan_dtype", tensor.dtype)
    made = torch.empty(tensor.shape, dtype=dtype, device=device)
    if device.type != "meta":
        made.normal_(0, 0.02) if made.is_floating_point() else made.zero_()
    return made


def _like(old: Tensor, made: Tensor) -> Tensor:
    return nn.Parameter(made, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else made


_ELEMENT = {"nf4": 0.5, "fp4": 0.5, "int8": 1.0}
"""Bytes that transformers counts per element to be quantized (transformers 5.23
quantizers/quantizer_bnb_{4,8}bit.py quantized_element_size).
"""


def _warm_up(model: nn.Module, setup: Setup, device: torch.device) -> None:
    """One block of the size of what will be loaded; freed at once, it stays reserved (transformers 5.23
    modeling_utils.py get_total_byte_count, caching_allocator_warmup).
    """
    sizes: dict[int, float] = {}
    for slot in slots_of(model):
        if slot.persistent:
            tensor = slot.tensor
            element = (
                _ELEMENT[setup.quant_type] if hasattr(tensor, "memplan_dtype") else tensor.element_size()
            )
            sizes[id(tensor)] = tensor.numel() * element
    torch.empty(int(sum(sizes.values()) // 2), dtype=torch.float16, device=device)


def _rotary(model: nn.Module, device: torch.device) -> None:
    """Rotary tables must be sane numbers on a real device: inverse frequencies, computed on the host and
    copied in.
    """
    if device.type == "meta":
        return
    for module in model.modules():
        for name in ("inv_freq", "original_inv_freq"):
            table = getattr(module, name, None)
            if isinstance(table, torch.Tensor):
                count = table.numel()
                table.copy_((1.0 / (10000 ** (torch.arange(count).float() / count))).view_as(table))
