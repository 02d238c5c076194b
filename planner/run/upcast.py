"""What a stack casts to fp32 once the model is loaded, before adapters are added."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from memplan.planner.inputs.setup import Setup
from memplan.planner.run.extras import load
from memplan.planner.tables.upcasts import PASSES, returns, routes


def upcast(model: Any, setup: Setup, watcher: Any) -> None:
    """Cast what the setup's stack casts, in its order."""
    if setup.quant_type != "none" and setup.kbit_prepare:
        _prepare_for_kbit(model, watcher)
    if setup.upcast_modules in PASSES:
        _there_and_back(model, setup, watcher)
    elif setup.upcast_modules != "none":
        _norms(model, setup.upcast_modules == "norms_and_embeddings")


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


def _norms(model: Any, embeddings: bool) -> None:
    """Norms (and embeddings, head) to fp32, trained or not (axolotl 0.21 loaders/model.py
    _configure_embedding_dtypes).
    """
    for name, module in model.named_modules():
        if "norm" in name.rsplit(".", 1)[-1] or (
            embeddings and any(part in name for part in ("lm_head", "embed_tokens", "wte"))
        ):
            module.to(torch.float32)
