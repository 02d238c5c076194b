"""Which tensors belong to which component, read off the model and the optimizer after each moment. Addresses are kept, never tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from profiler.history import LOADED, Claim
from profiler.recorders import claim_tensors


def loaded(built: Any) -> list[Claim]:
    """Weights (parameters, buffers, quantisation constants) and the batch, once everything is built."""
    return [*claim_tensors(LOADED, weights(built.model), "weights"), *claim_tensors(LOADED, tensors(built.batch, "batch"), "activations")]


def after_moment(built: Any) -> Callable[[str, str], list[Claim]]:
    """(moment, mark) -> what is held after that moment."""
    names = {id(parameter): name for name, parameter in built.model.named_parameters()}

    def claims(moment: str, label: str) -> list[Claim]:
        if moment == "backward":
            grads = ((f"{names[id(p)]}.grad", p.grad) for p in built.trainable if p.grad is not None)
            return claim_tensors(label, grads, "gradients")
        if moment in ("optimizer_step", "update_and_allocate"):
            states = (
                (f"{names.get(id(parameter), '')}.{key}", tensor)
                for parameter, state in built.optimizer.state.items()
                for key, tensor in tensors(state)
            )
            return [
                *claim_tensors(label, states, "optimizer_states"),
                *claim_tensors(label, tensors(importance_buffers(built.model)), "optimizer_states"),
                *claim_tensors(label, weights(built.model), "weights"),  # AdaLoRA puts new tensors in place of its masked ones
            ]
        return []

    return claims


def weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, buffers, and what a bitsandbytes weight keeps beside itself (bitsandbytes 0.50 functional.py, nn/modules.py)."""
    yield from model.named_parameters()
    yield from model.named_buffers()
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        state = getattr(weight, "quant_state", None)
        for level in (state, getattr(state, "state2", None)):
            yield from tensors({key: getattr(level, key, None) for key in ("absmax", "code", "offset")}, f"{name}.weight")
        for holder in (weight, getattr(module, "state", None)):
            yield from tensors({key: getattr(holder, key, None) for key in ("SCB", "CB")}, f"{name}.weight")


def importance_buffers(model: Any) -> dict[str, Any]:
    """AdaLoRA's moving averages (peft 0.21 tuners/adalora/layer.py RankAllocator)."""
    allocator = getattr(getattr(model, "base_model", None), "rankallocator", None)
    return {key: getattr(allocator, key, None) for key in ("ipt", "exp_avg_ipt", "exp_avg_unc")}


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested dictionaries and lists, with its path."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from tensors(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from tensors(inner, f"{path}.{index}")
