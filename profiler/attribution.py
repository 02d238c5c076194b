"""Which block belongs to which component: what a model and an optimizer hold after each moment, and what
autograd saves, as addresses.

Addresses are kept, never tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from memplan.planner.run import owners
from memplan.profiler.history import LOADED, Attribution


def loaded(built: Any) -> list[Attribution]:
    """Weights (parameters, buffers, quantization constants) and the batch, once everything is built."""
    return [
        *_claims(LOADED, owners.weights(built.model), "weights"),
        *_claims(LOADED, owners.batches(built), "activations"),
    ]


def after_moment(built: Any) -> Callable[[str, str], list[Attribution]]:
    """(moment, mark) -> what is held after that moment."""
    names = {id(parameter): name for name, parameter in built.model.named_parameters()}

    def claims(moment: str, label: str) -> list[Attribution]:
        if moment == "backward":
            return _claims(label, owners.gradients(built.trainable, names), "gradients")
        if moment in owners.STEPPED:
            return [
                *_claims(label, owners.optimizer_states(built, names), "optimizer_states"),
                *_claims(
                    label, owners.weights(built.model), "weights"
                ),  # AdaLoRA puts new tensors in place of its masked ones
            ]
        return []

    return claims


def saved_tensors(note: Callable[[int], None]) -> AbstractContextManager[None]:
    """Call `note` with the address of every storage that autograd saves while one step runs."""

    def seen(tensor: torch.Tensor) -> None:
        address = tensor.untyped_storage().data_ptr()
        if address:
            note(address)

    return owners.saved_for_backward(seen)


def _claims(label: str, tensors: owners.Named, component: str) -> list[Attribution]:
    """Claims for the storages of named tensors."""
    found = ((name, tensor.untyped_storage().data_ptr()) for name, tensor in tensors)
    return [Attribution(label, address, component, name) for name, address in found if address]
