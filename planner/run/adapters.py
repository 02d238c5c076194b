"""What is trained: everything, the last layers, peft adapters of any type, or bottleneck adapters."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from memplan.planner.inputs.setup import Setup
from memplan.planner.run.bottleneck import add_bottlenecks
from memplan.planner.run.extras import load
from memplan.planner.run.model import layer_number, layer_place, layer_prefix, layers_of, reason, task_type
from memplan.planner.run.renamed import renamed
from memplan.planner.run.towers import freeze, frozen_modules
from memplan.planner.run.upcast import upcast_modules
from memplan.planner.tables.errors import UsageError, unknown
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.peft_targets import IA3_FEEDFORWARD, IA3_TARGETS

_PROMPTS = {
    "PREFIX_TUNING": "PrefixTuningConfig",
    "PROMPT_TUNING": "PromptTuningConfig",
    "P_TUNING": "PromptEncoderConfig",
}
_ATTENTION_PART = re.compile(r"(^|\.)(self_attn|self_attention|attention|attn|cross_attn)(\.|$)")


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
        with watcher.on_host(), _uninitialized(config, device):
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


def peft_config(model: nn.Module, setup: Setup) -> Any:
    """The peft configuration of a setup: of its adapter_config.json where there is one, else of its
    method.
    """
    import peft

    if setup.adapter is not None:
        return _read_adapter(setup.adapter, task_type(model))
    common: dict[str, Any] = {"task_type": task_type(model)}
    peft_type = METHODS[setup.method].peft_type
    if peft_type in _PROMPTS:
        return getattr(peft, _PROMPTS[peft_type])(num_virtual_tokens=setup.virtual_tokens, **common)
    common.update(
        target_modules=_targets(model, setup.targets),
        modules_to_save=list(setup.modules_to_save) or None,
    )
    if setup.layers_to_transform:
        common["layers_to_transform"] = _layers(model, setup.layers_to_transform)
        if common["target_modules"] == "all-linear":  # PEFT has no numbers of layers beside that word
            common["target_modules"] = _linear_names(model)
    if peft_type == "VERA":
        return peft.VeraConfig(r=setup.rank, vera_dropout=float(setup.dropout), **common)
    common["exclude_modules"] = frozen_modules(model, setup)
    if peft_type == "OFT":
        return peft.OFTConfig(**common)
    if peft_type == "IA3":
        return peft.IA3Config(feedforward_modules=_feedforward(model, common["target_modules"]), **common)
    common.update(
        lora_alpha=setup.alpha,
        lora_dropout=float(setup.dropout),
    )
    if peft_type == "ADALORA":
        return peft.AdaLoraConfig(
            init_r=setup.init_rank,
            target_r=setup.target_rank,
            total_step=1000,
            tinit=1,
            tfinal=500,
            deltaT=1,
            **common,
        )
    return peft.LoraConfig(
        r=setup.rank,
        use_dora=setup.method == "dora",
        use_rslora=setup.method == "rslora",
        inference_mode=bool(setup.adapters),
        **common,
    )


def _read_adapter(document: dict[str, Any], kind_of_task: str | None) -> Any:
    """A parsed adapter_config.json as its peft configuration class; keys that the class does not know are
    dropped. A classifier's model needs its own task type.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = str(document.get("peft_type", "")).upper()
    known = {getattr(key, "value", str(key)): cls for key, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in known:
        raise unknown("peft_type in adapter_config.json", kind.lower(), [name.lower() for name in known])
    accepted = inspect.signature(known[kind].__init__).parameters
    aside = ("peft_type", "inference_mode", "base_model_name_or_path")
    fields = {key: value for key, value in document.items() if key in accepted and key not in aside}
    fields.setdefault("task_type", "CAUSAL_LM")
    if kind_of_task in ("SEQ_CLS", "TOKEN_CLS"):
        fields["task_type"] = kind_of_task
    try:
        return known[kind](**fields)
    except Exception as error:
        raise UsageError(f"peft rejects this {kind} adapter_config.json: {reason(error)}") from None


def _linear_names(model: Any) -> list[str]:
    """The last names of all linear layers but the output projection."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if module is not head and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        }
    )


def _layers(model: nn.Module, chosen: tuple[int, ...]) -> list[int]:
    """The layers that have an adapter. UsageError for one that the model has not."""
    count = len(layers_of(model))
    if count and max(chosen) >= count:
        raise UsageError(
            f"layers_to_transform {max(chosen)}: {type(model).__name__} has layers 0 to {count - 1}"
        )
    return list(chosen)


def _targets(model: nn.Module, targets: tuple[str, ...]) -> str | list[str] | None:
    if targets == ("all-linear",):
        return "all-linear"
    if targets == ("peft-default",):
        return None
    if targets == ("attention",):
        names = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if _ATTENTION_PART.search(name)
            and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        }
        if not names:
            raise UsageError(
                f"targets 'attention' matches no linear layer of {type(model).__name__}: name the modules"
            )
        return sorted(names)
    return list(targets)


def _feedforward(model: Any, targets: str | list[str] | None) -> list[str] | None:
    """IA3's feed-forward layers: None where PEFT has its own for the model type, whose targets or others are
    asked for; it fails without any.
    """
    if targets is None or model.config.model_type in IA3_TARGETS:
        return None
    return [name for name in IA3_FEEDFORWARD if targets == "all-linear" or name in targets]


def rank_allocator(model: Any, setup: Setup) -> Callable[[int], None] | None:
    """AdaLoRA's `update_and_allocate`, which the loop has to call; None for any other method."""
    update = getattr(getattr(model, "base_model", None), "update_and_allocate", None)
    return update if callable(update) else None
