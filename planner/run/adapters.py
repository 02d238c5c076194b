"""What is trained: everything, the last layers, peft adapters of any type, or bottleneck adapters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from memplan.planner.inputs.regular import regular
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.validation_text import WORDS
from memplan.planner.run.bottleneck import add_bottlenecks
from memplan.planner.run.extras import load
from memplan.planner.run.model import layer_number, layer_place, layer_prefix, layers_of, reason
from memplan.planner.run.peft_config import peft_config
from memplan.planner.run.renamed import renamed
from memplan.planner.run.towers import freeze
from memplan.planner.run.upcast import upcast_modules
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.recipes import RECIPES


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is one that peft (0.21 mapping.py PEFT_TYPE_TO_PREFIX_MAPPING) or
    `bottleneck` gives to what it adds.
    """
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    marks = {prefix for prefix in PEFT_TYPE_TO_PREFIX_MAPPING.values() if prefix}
    return any(mark in name for mark in (*marks, "modules_to_save.", "prompt_encoder.", "bottleneck."))


def prepare(model: Any, setup: Setup, device: torch.device, watcher: Any) -> nn.Module:
    """Freeze, adapt, upcast and switch on checkpointing as the recipe's stack does; what the loop then
    calls.
    """
    upcast_modules(model, setup, watcher)
    trains = METHODS[setup.method].trains
    if setup.adapter is not None or trains == "adapter" or setup.adapters:
        adapted = _inject(model, setup, device, watcher)
    else:
        adapted = model
        # what a class freezes itself (Whisper's positions of the encoder) loading makes trainable again
        # (transformers 5.24 core_model_loading.py set_param_for_module)
        model.requires_grad_(trains == "all")
        freeze(model, setup)
        if setup.trained_parameters:
            _train_named(model, setup.trained_parameters)
        if trains == "last_layers":
            _unfreeze_last(model, setup.trainable_layers or 1)
        if trains == "biases":
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.endswith(".bias"))
    _cast_trained(adapted, setup)
    if setup.method == "inference":
        model.config.use_cache = True
    if setup.checkpointing != "none":
        _checkpoint(model, setup, trained_input=trains == "all" and setup.adapter is None)
    if not any(p.requires_grad for p in adapted.parameters()) and setup.method != "inference":
        why = ", which has no biases: use --method lora" if trains == "biases" else ""
        raise UsageError(f"method '{setup.method}' trains nothing in {type(model).__name__}{why}")
    return adapted


def _checkpoint(model: Any, setup: Setup, trained_input: bool) -> None:
    """Gradient checkpointing as transformers switches it on; with frozen embeddings the layer inputs must ask
    for gradients.
    """
    if setup.checkpoint_offload and setup.device == "cpu":
        raise UsageError(
            "checkpoint_offload moves layer inputs from a GPU to the host: device cpu has none to move"
        )
    kwargs: dict[str, Any] = {"use_reentrant": setup.checkpointing == "reentrant"}
    options: dict[str, Any] = {}
    if setup.checkpoint_every > 1:
        options["every_n_layers"] = setup.checkpoint_every
    if setup.checkpoint_offload:
        options["offload"] = True
    try:
        renamed(model, "activation_checkpointing_enable")(kwargs, **options)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{type(model).__name__} cannot checkpoint activations: {reason(error)}") from None
    for layer in layers_of(model):
        if hasattr(layer, "gradient_checkpointing") and setup.checkpoint_every > 1:
            layer.gradient_checkpointing = layer_place(layer) % setup.checkpoint_every == 0
    # transformers 5.24 modeling_utils.py _activation_checkpointing_enable: not of a model that reads features
    if (not trained_input or setup.checkpointing == "reentrant") and model.main_input_name == "input_ids":
        model.enable_input_require_grads()


def _unfreeze_last(model: nn.Module, count: int) -> None:
    layers = layers_of(model)
    if not layers:
        raise UsageError(f"{type(model).__name__} has no list of layers: method 'freeze' does not apply")
    last = layer_place(layers[-1])
    if count > last + 1:
        raise UsageError(f"trainable_layers {count} is more than the {last + 1} layers of this model")
    for layer in layers:
        if layer_place(layer) > last - count:
            layer.requires_grad_(True)


def _train_named(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Only the parameters whose names begin as a pattern says are trained. As axolotl 0.19 reads it
    (utils/freeze.py freeze_layers_except): a point is a point, and rows in brackets behind a pattern have
    their gradients zeroed, no fewer of them.
    """
    plain = [re.sub(r"(?<!^)\[\d*:?\d*\]$", "", each) for each in patterns]
    found = [
        regular("trained_parameters", re.sub(r"\.(?!\+)", r"\.", each), WORDS["trained_parameters"])
        for each in plain
    ]
    for name, parameter in model.named_parameters():
        if not any(each.match(name) for each in found):
            parameter.requires_grad_(False)


def _cast_trained(model: nn.Module, setup: Setup) -> None:
    for parameter in model.parameters():
        if not parameter.requires_grad or not parameter.is_floating_point():
            continue
        if setup.trainable_dtype == "float32" and parameter.dtype != torch.float32:
            parameter.data = parameter.data.to(torch.float32)
        elif (
            setup.adapter_dtype == "bfloat16"
            and METHODS[setup.method].trains == "adapter"
            and parameter.dtype == torch.float32
        ):
            parameter.data = parameter.data.to(torch.bfloat16)


def _inject(model: Any, setup: Setup, device: torch.device, watcher: Any) -> nn.Module:
    """peft's get_peft_model, or bottleneck adapters. UsageError with peft's reason where it refuses."""
    if setup.method == "adapter" and setup.adapter is None:
        model.requires_grad_(False)
        add_bottlenecks(model, setup.bottleneck or 64, getattr(torch, setup.adapter_dtype), device)
        return model  # type: ignore[no-any-return]
    peft = load("peft")
    config = peft_config(model, setup)
    _refuse_prompts(model, config, setup)
    try:
        with watcher.on_host(), _uninitialized(config, device), _experts_without_dropout(setup):
            adapted = peft.get_peft_model(
                model, config, autocast_adapter_dtype=setup.adapter_dtype == "float32"
            )
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"peft cannot add {config.peft_type.value} to {type(model).__name__}: {reason(error)}"
        ) from None
    _settle(adapted, device, watcher)
    if setup.adapters:
        _serve(adapted, config, setup, device, watcher)
    if setup.method == "lora-fa":
        for name, parameter in adapted.named_parameters():
            if ".lora_A." in name:
                parameter.requires_grad_(False)
    return adapted


@contextmanager
def _experts_without_dropout(setup: Setup) -> Iterator[None]:
    """peft 0.21 tuners/lora/layer.py ParamWrapper refuses dropout. Where a recipe says so, experts that PEFT
    turns into adapted parameters by itself have none, as all else has; those that a setup names are refused.
    """
    if not setup.dropout or setup.target_parameters or not RECIPES[setup.recipe].dropout_beside_experts:
        yield
        return
    from peft.tuners.lora.layer import ParamWrapper

    original = ParamWrapper.__init__

    def bare(self: Any, *args: Any, config: Any, **more: Any) -> None:
        plain = copy(config)
        plain.lora_dropout = 0.0
        original(self, *args, config=plain, **more)

    with patch.object(ParamWrapper, "__init__", bare):
        yield


def _settle(adapted: nn.Module, device: torch.device, watcher: Any) -> None:
    """What an adapter left on the host goes to the device, module by module."""
    prefix = layer_prefix(adapted)
    for path, module in adapted.named_modules():
        with watcher.scope(path, layer_number(prefix, path)):
            for store in (module._parameters, module._buffers):
                for key, tensor in store.items():
                    if tensor is not None:
                        store[key] = watcher.to_device(_moved(tensor, device))


def _serve(adapted: Any, config: Any, setup: Setup, device: torch.device, watcher: Any) -> None:
    """An inference's further adapters, and each one's file as it is read onto the device (peft 0.21
    peft_model.py load_adapter, utils/save_and_load.py load_peft_weights). A layer whose first adapter is on
    meta leaves the next as it was made (tuners_utils.py _move_adapter_to_device_of_base_layer): its dtype is
    the first one's, as on a GPU.
    """
    first = {name: p for name, p in adapted.named_parameters() if f".{adapted.active_adapter}." in name}
    for number in range(setup.adapters or 0):
        added = f"adapter_{number}" if number else adapted.active_adapter
        if number:
            with watcher.on_host(), _uninitialized(config, device):
                adapted.add_adapter(added, config, autocast_adapter_dtype=setup.adapter_dtype == "float32")
                for name, like in first.items():
                    made = adapted.get_parameter(name.replace(f".{adapted.active_adapter}.", f".{added}."))
                    made.data = made.data.to(like.dtype)
            _settle(adapted, device, watcher)
        read = [torch.empty_like(p) for p in first.values()]
        del read


def _refuse_prompts(model: Any, config: Any, setup: Setup) -> None:
    """UsageError for learned prompts where PEFT has no place for them."""
    kind = config.peft_type.value
    if config.is_prompt_learning and config.task_type is None:
        raise UsageError(
            f"PEFT adds {kind} to causal and sequence-to-sequence language models: {type(model).__name__} "
            "is neither"
        )
    if (
        kind in ("PREFIX_TUNING", "CARTRIDGE") and setup.checkpointing != "none"
    ):  # peft 0.21 peft_model.py _setup_prompt_encoder
        raise UsageError(
            f"{kind} does not work with gradient checkpointing, which drops the cache that it is: use "
            "--no-checkpointing"
        )


def _uninitialized(config: Any, device: torch.device) -> AbstractContextManager[None]:
    """peft makes LoRA's matrices with real values on the host before it moves them. On meta nobody reads
    them, and an expert layer's are large.
    """
    from transformers.initialization import no_init_weights

    quick = device.type == "meta" and config.peft_type.value == "LORA"
    return no_init_weights() if quick else nullcontext()  # type: ignore[no-any-return]


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """What an adapter left on the host goes to the device with the model."""
    if tensor.device.type == device.type:
        return tensor
    made = tensor.detach().to(device)
    return (
        nn.Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
    )


def rank_allocator(model: Any, setup: Setup) -> Callable[[int], None] | None:
    """AdaLoRA's `update_and_allocate`, which the loop has to call; None for any other method."""
    update = getattr(getattr(model, "base_model", None), "update_and_allocate", None)
    return update if callable(update) else None
