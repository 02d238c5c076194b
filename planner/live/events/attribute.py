"""Which component each storage belongs to: decided by what ends up holding it.

weights: parameters, buffers, quantisation constants. gradients: `.grad`. optimizer_states: the optimizer's tensors and AdaLoRA's importance
buffers. activations: saved for backward (seen by autograd's own hooks, recomputation included), the batch, and what outlives its forward.
temporaries: the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from planner.breakdown import COMPONENTS
from planner.live.build import Built
from planner.live.events.log import Storage
from planner.live.observe import Observer

_RANK: dict[str, int] = {component: rank for rank, component in enumerate(COMPONENTS)}  # weights win over gradients win over ...


def claim(observer: Observer, tensor: Any, component: str, name: str = "") -> None:
    """Give the tensor's storage to a component unless one that ranks higher holds it."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_meta:
        return
    storage = observer.storage_of(tensor)
    if storage is None:
        return
    if not storage.component or _RANK[component] < _RANK[storage.component]:
        storage.component, storage.name = component, name


def claim_weights(observer: Observer, built: Built) -> None:
    """Parameters, buffers and the constants of quantised weights."""
    for name, tensor in _named(built.model):
        claim(observer, tensor, "weights", name)
    for name, module in built.model.named_modules():
        for key, tensor in quantisation_constants(module):
            claim(observer, tensor, "weights", f"{name}.{key}")
    for name, tensor in built.batch.items():
        claim(observer, tensor, "activations", f"batch.{name}")


def _named(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def quantisation_constants(module: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors beside a bitsandbytes weight: block maxima, code tables, and those of the second quantisation."""
    weight = module._parameters.get("weight")
    state = getattr(weight, "quant_state", None)
    for level in (state, getattr(state, "state2", None)):
        for key in ("absmax", "code", "offset"):
            tensor = getattr(level, key, None) if level is not None else None
            if isinstance(tensor, torch.Tensor):
                yield f"weight.{key}" if level is state else f"weight.nested_{key}", tensor
    for holder in (weight, getattr(module, "state", None)):
        for key in ("SCB", "CB"):
            tensor = getattr(holder, key, None)
            if isinstance(tensor, torch.Tensor):
                yield f"weight.{key}", tensor


def claim_after(observer: Observer, built: Built) -> Callable[[str], None]:
    """What a finished moment leaves behind, claimed for the component that holds it."""
    names = {id(p): name for name, p in built.model.named_parameters()}

    def after(moment: str) -> None:
        if moment == "forward":
            for storage in observer.alive():
                if not storage.component and storage.moment == "forward":
                    storage.component = "activations"
        elif moment == "backward":
            for parameter in built.trainable:
                claim(observer, parameter.grad, "gradients", names[id(parameter)] + ".grad")
        elif moment in ("optimizer_step", "update_and_allocate"):
            for parameter, state in built.optimizer.state.items():
                for key, tensor in tensors(state):
                    claim(observer, tensor, "optimizer_states", f"{names.get(id(parameter), '')}.{key}")
            for key, tensor in tensors(rank_allocator_state(built)):
                claim(observer, tensor, "optimizer_states", key)

    return after


def rank_allocator_state(built: Built) -> dict[str, Any]:
    """AdaLoRA's importance buffers, by parameter (peft 0.21 tuners/adalora/layer.py RankAllocator)."""
    allocator = getattr(getattr(built.model, "base_model", None), "rankallocator", None)
    return {key: getattr(allocator, key) for key in ("ipt", "exp_avg_ipt", "exp_avg_unc") if hasattr(allocator, key)}


def tensors(value: Any, key: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested dictionaries and lists, with its path."""
    if isinstance(value, torch.Tensor):
        yield key, value
    elif isinstance(value, dict):
        for k, v in value.items():
            yield from tensors(v, f"{key}.{k}" if key else str(k))
    elif isinstance(value, (list, tuple)):
        for index, v in enumerate(value):
            yield from tensors(v, f"{key}.{index}")


@contextmanager
def saved_for_backward(observer: Observer) -> Iterator[None]:
    """Mark what autograd saves. The hooks hand back the tensor itself, so no lifetime changes; hooks that others push (checkpointing) are
    wrapped, and what they turn into something else than a device tensor is not marked."""
    module = torch._C._autograd
    push = module._push_saved_tensors_default_hooks

    def mark(tensor: Any) -> None:
        if isinstance(tensor, torch.Tensor) and tensor.layout == torch.sparse_coo:
            mark(tensor._indices())
            mark(tensor._values())
        elif isinstance(tensor, torch.Tensor) and tensor.is_meta:
            observer.meet(tensor)  # a list of indices is saved before the op that takes it runs
            storage = observer.storage_of(tensor)
            if storage is not None and not storage.component:
                storage.component, storage.saved = "activations", True

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        mark(tensor)
        return tensor

    def wrapped(theirs: Callable[[Any], Any], unpack: Callable[[Any], Any]) -> None:
        def both(tensor: Any) -> Any:
            kept = theirs(tensor)
            mark(kept)
            return kept

        push(both, unpack)

    module._push_saved_tensors_default_hooks = wrapped  # type: ignore[assignment]
    push(pack, lambda tensor: tensor)
    try:
        yield
    finally:
        module._pop_saved_tensors_default_hooks()
        module._push_saved_tensors_default_hooks = push


def settle_rest(storages: list[Storage]) -> None:
    """What nothing claimed is temporary."""
    for storage in storages:
        if not storage.component:
            storage.component = "temporaries"
