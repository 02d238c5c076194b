"""Which component each storage belongs to: decided by what ends up holding it.

weights: parameters, buffers, quantization constants. gradients: `.grad`. optimizer_states: the optimizer's
tensors and AdaLoRA's importance buffers. activations: saved for backward (seen by autograd's own hooks,
recomputation included), the batch, and what outlives its forward. temporaries: the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from memplan.planner.run import owners
from memplan.planner.run.built import Built
from memplan.planner.run.optimizer import Behind, InBackward
from memplan.planner.tables.components import COMPONENTS, GENERATION
from memplan.planner.trace.events.log import Storage
from memplan.planner.trace.observe import Observer

_RANK: dict[str, int] = {
    component: rank for rank, component in enumerate(COMPONENTS)
}  # weights win over gradients win over ...


def attribute(observer: Observer, tensor: Any, component: str, name: str = "") -> None:
    """Give the tensor's storage to a component unless one that ranks higher holds it."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_meta:
        return
    storage = observer.storage_of(tensor)
    if storage is None:
        return
    if not storage.component or _RANK[component] < _RANK[storage.component]:
        storage.component, storage.name = component, name


def attribute_weights(observer: Observer, built: Built) -> None:
    """Parameters, buffers and the constants of quantized weights; the batch."""
    attribute_all(observer, owners.weights(built.model), "weights")
    attribute_all(observer, owners.reference(built), "weights")
    attribute_all(observer, owners.batches(built), "activations")


def attribute_all(observer: Observer, named: owners.Named, component: str) -> None:
    """Attribute named tensors to a component, each under its own name."""
    for name, tensor in named:
        attribute(observer, tensor, component, name)


def attribute_after(observer: Observer, built: Built) -> Callable[[str], None]:
    """What a finished moment leaves behind, claimed for the component that holds it."""
    names = {id(p): name for name, p in built.model.named_parameters()}
    if isinstance(built.optimizer, (Behind, InBackward)):
        built.optimizer.watch(
            lambda parameter: attribute_all(observer, owners.gradients([parameter], names), "gradients")
        )

    def after(moment: str) -> None:
        if moment == GENERATION:
            attribute_all(observer, owners.batches(built), "activations")
            attribute_all(observer, owners.cache(built), "activations")
        elif moment == "forward":
            for storage in observer.alive():
                if not storage.component and storage.moment == "forward":
                    storage.component = "activations"
        elif moment == "backward":
            attribute_all(observer, owners.gradients(built.trainable, names), "gradients")
        elif moment in owners.STEPPED:
            attribute_all(observer, owners.optimizer_states(built, names), "optimizer_states")
            # galore-torch 1.0 adamw8bit.py gives each projected matrix a new storage
            attribute_all(observer, owners.weights(built.model), "weights")

    return after


def saved_for_backward(observer: Observer) -> AbstractContextManager[None]:
    """Mark what autograd saves; what a hook turned into something else than a device tensor is not marked."""

    def mark(tensor: torch.Tensor) -> None:
        if not tensor.is_meta:
            return
        observer.register(tensor)  # a list of indices is saved before the op that takes it runs
        storage = observer.storage_of(tensor)
        if storage is not None and not storage.component:
            storage.component, storage.saved = "activations", True

    return owners.saved_for_backward(mark)


def finalize_rest(storages: list[Storage]) -> None:
    """What nothing claimed is temporary."""
    for storage in storages:
        if not storage.component:
            storage.component = "temporaries"
