"""What a stack casts to fp32 once the model is loaded, before adapters are added."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from memplan.planner.inputs.setup import Setup
from memplan.planner.run.extras import load
from memplan.planner.tables.upcasts import PASSES, returns, routes, upcast


def upcast_modules(model: Any, setup: Setup, watcher: Any) -> None:
    """Cast what the setup's stack casts, in its order."""
    kbit = setup.quant_type != "none" and setup.kbit_prepare
    if kbit:
        _prepare_for_kbit(model, watcher)
    if setup.upcast_modules in PASSES:
        if kbit:  # all that is not quantized is in fp32, and stays so
            return
        _there_and_back(model, setup, watcher)
    elif setup.upcast_modules != "none":
        for name, module in model.named_modules():
            if upcast(name, setup.upcast_modules):
                module.to(torch.float32)


def _there_and_back(model: Any, setup: Setup, watcher: Any) -> None:
    """axolotl's passes for adapters (planner/tables/upcasts.py has their source)."""
    _cast(model, torch.float32, routers=True)
    if setup.upcast_modules == "unquantized":
        _prepare_for_kbit(model, watcher)
    _cast(model, getattr(torch, setup.weight_dtype), routers=False)


def _cast(model: Any, dtype: torch.dtype, routers: bool) -> None:
    for name, module in model.named_modules():
        if (returns(name) or (routers and routes(name))) and not list(module.children()):
            module.to(dtype)


def _prepare_for_kbit(model: Any, watcher: Any) -> None:
    load("peft").prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if clears_cache():
        watcher.empty_cache()


def clears_cache() -> bool:
    """Whether k-bit preparation ends with `empty_cache` (peft 0.20 does, 0.19 does not)."""
    import peft

    return "auto_clear_cache" in inspect.signature(peft.prepare_model_for_kbit_training).parameters
