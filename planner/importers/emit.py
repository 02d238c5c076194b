"""A Setup written as somebody's configuration file, then read back by the importer: what the stack cannot say
is named, never dropped.

Only settings that move memory are written, with the model and placeholders for data; learning rates and the
like are the user's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memplan.planner.importers.changed import applied
from memplan.planner.importers.document import parse
from memplan.planner.importers.files import FORMATS, read_document
from memplan.planner.importers.liger import adapter_kernels, configured, named
from memplan.planner.inputs.models import Model, index
from memplan.planner.inputs.setup import FIELDS, Setup, resolve
from memplan.planner.tables.errors import UsageError, unknown
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.peft_targets import ALL_LINEAR, LINEAR_MODULES

UNSAID = (
    "recipe",
    "gpu",
    "device",
    "load",
    "allocator",
    "torch",
    "transformers",
    "retain_outputs",
    "zero_grad",
    "optimizer_mode",
    "origins",
    "importance_buffers",
)
"""Fields that no training file says: they belong to the machine, to the loop, or follow from others."""


def _adapters(setup: Setup) -> bool:
    return METHODS[setup.method].trains == "adapter"


Part = tuple[bool, dict[str, Any]]


def _said(*parts: Part) -> dict[str, Any]:
    """The settings of every part whose condition holds, in order; a later one wins."""
    return {key: value for holds, settings in parts if holds for key, value in settings.items()}


def _axolotl(model: str, s: Setup) -> dict[str, Any]:
    quantized, adapters = s.quant_type in ("nf4", "fp4"), _adapters(s)
    everywhere = s.targets in ((ALL_LINEAR,), (LINEAR_MODULES,))
    liger = {"plugins": ["axolotl.integrations.liger.LigerPlugin"]}
    fsdp = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}, "dp_shard_size": s.gpus}
    return _said(
        (True, {"base_model": model, "datasets": [{"path": "YOUR_DATASET", "type": "alpaca"}]}),
        (True, {"output_dir": "./outputs"}),
        (adapters, {"adapter": "qlora" if quantized else "lora", "lora_r": s.rank}),
        (adapters, {"lora_alpha": s.alpha, "lora_dropout": s.dropout}),
        (adapters and everywhere, {"lora_target_linear": True}),
        (adapters and not everywhere, {"lora_target_modules": list(s.targets)}),
        (adapters and bool(s.modules_to_save), {"lora_modules_to_save": list(s.modules_to_save)}),
        (bool(s.target_parameters), {"lora_target_parameters": list(s.target_parameters)}),
        (bool(s.layers_to_transform), {"peft_layers_to_transform": list(s.layers_to_transform)}),
        (bool(s.trained_parameters), {"unfrozen_parameters": list(s.trained_parameters)}),
        (adapters and s.method == "dora", {"peft_use_dora": True}),
        (adapters and s.method == "rslora", {"peft_use_rslora": True}),
        (adapters and s.adapter_dtype != "float32", {"peft_autocast_adapter_dtype": False}),
        (adapters, adapter_kernels(s.fused_kernels)),
        (True, {"load_in_4bit": quantized, "load_in_8bit": s.quant_type == "int8"}),
        (quantized, {"bnb_config_kwargs": _four_bit(s)}),
        (s.quantize_experts, {"quantize_moe_experts": True}),
        (True, {"sequence_len": s.sequence_length, "micro_batch_size": s.micro_batch}),
        (True, {"gradient_accumulation_steps": s.gradient_accumulation}),
        (True, {"sample_packing": s.packed_documents > 1, "optimizer": s.optimizer}),
        (True, {"learning_rate": 0.0002, "num_epochs": 1}),
        (s.weight_dtype == "bfloat16", {"bf16": "full" if s.autocast == "none" else True}),
        (s.weight_dtype == "float16", {"bf16": False, "fp16": True}),
        (s.weight_dtype == "float32", {"bf16": False, "float32": True}),
        (True, {"gradient_checkpointing": s.checkpointing != "none" or s.activation_offload != "none"}),
        (s.checkpointing != "none", {"gradient_checkpointing_kwargs": _reentrant(s)}),
        (s.checkpoint_offload, {"activation_offloading": "hidden_states"}),
        (s.activation_offload in OFFLOADING, {"activation_offloading": OFFLOADING.get(s.activation_offload)}),
        (True, {"attn_implementation": s.attention.split("-")[0]}),
        (s.loss == "fused" or bool(named(s.fused_kernels)), {**named(s.fused_kernels), **liger}),
        (s.loss == "fused", {"liger_fused_linear_cross_entropy": True}),
        (s.loss == "axolotl-chunked", {"chunked_cross_entropy": True}),
        (s.parallel == "fsdp", fsdp),
    )


def _four_bit(s: Setup) -> dict[str, Any]:
    return {
        "bnb_4bit_quant_type": s.quant_type,
        "bnb_4bit_use_double_quant": s.double_quant,
        "bnb_4bit_quant_storage": s.quant_storage,
    }


def _reentrant(s: Setup) -> dict[str, Any]:
    return {"use_reentrant": s.checkpointing == "reentrant"}


def _training(s: Setup) -> dict[str, Any]:
    evaluates = {"eval_strategy": "steps", "per_device_eval_batch_size": s.eval_batch}
    return {
        **(evaluates if s.eval_batch is not None else {}),
        "per_device_train_batch_size": s.micro_batch,
        "gradient_accumulation_steps": s.gradient_accumulation,
        "optim": s.optimizer,
        "output_dir": "./outputs",
        "learning_rate": 0.0002,
        "num_train_epochs": 1,
        "bf16": s.autocast == "bfloat16",
        "fp16": s.autocast == "float16",
    }


OFFLOADING: dict[str, bool | str] = {
    **dict.fromkeys(("trl", "axolotl"), True),
    **dict.fromkeys(("trl-synchronous", "axolotl-synchronous"), "legacy"),
}
"""activation_offload -> axolotl's activation_offloading."""


def _trl(model: str, s: Setup) -> dict[str, Any]:
    quantized, adapters = s.quant_type in ("nf4", "fp4"), _adapters(s)
    every = {"every_n_layers": s.checkpoint_every} if s.checkpoint_every > 1 else {}
    nested = {"load_in_4bit": True, **_four_bit(s), "use_bnb_nested_quant": s.double_quant}
    del nested["bnb_4bit_use_double_quant"]
    return _said(
        (True, {"model_name_or_path": model, "dataset_name": "YOUR_DATASET", "dtype": s.weight_dtype}),
        (True, {"max_length": s.sequence_length, **_training(s)}),
        (True, {"gradient_checkpointing": s.checkpointing != "none"}),
        (OFFLOADING.get(s.activation_offload) is True, {"activation_offloading": True}),
        (True, {"attn_implementation": s.attention.split("-")[0]}),
        (s.checkpointing != "none", {"gradient_checkpointing_kwargs": _reentrant(s) | every}),
        (s.packed_documents > 1, {"packing": True}),
        (adapters, {"use_peft": True, "lora_r": s.rank, "lora_alpha": s.alpha, "lora_dropout": s.dropout}),
        (adapters and s.targets != ("peft-default",), {"lora_target_modules": list(s.targets)}),
        (adapters and bool(s.modules_to_save), {"lora_modules_to_save": list(s.modules_to_save)}),
        (bool(s.target_parameters), {"lora_target_parameters": list(s.target_parameters)}),
        (adapters and s.method == "dora", {"use_dora": True}),
        (adapters and s.method == "rslora", {"use_rslora": True}),
        (quantized, nested),
        (s.quant_type == "int8", {"load_in_8bit": True}),
        (bool(named(s.fused_kernels)), {"use_liger_kernel": True}),
        (bool(named(s.fused_kernels)), {"liger_kernel_config": configured(s.fused_kernels, False)}),
    )


FLASH = {"eager": "disabled", "sdpa": "sdpa", "flash_attention_2": "fa2"}


def _llamafactory(model: str, s: Setup) -> dict[str, Any]:
    adapters, bits = _adapters(s), 8 if s.quant_type == "int8" else 4
    narrow = s.autocast == "none" or (s.weight_dtype == "bfloat16" and not adapters)
    targets = "all" if s.targets == ("all-linear",) else ",".join(s.targets)
    four_bit = {"quantization_type": s.quant_type, "double_quantization": s.double_quant}
    return _said(
        (True, {"model_name_or_path": model, "stage": "sft", "do_train": True, "dataset": "YOUR_DATASET"}),
        (True, {"template": "default", "cutoff_len": s.sequence_length, **_training(s)}),
        (True, {"finetuning_type": "lora" if adapters else s.method}),
        (True, {"flash_attn": FLASH.get(s.attention, "sdpa")}),
        (True, {"disable_gradient_checkpointing": s.checkpointing == "none"}),
        (True, {"use_reentrant_gc": s.checkpointing == "reentrant"}),
        (s.checkpoint_offload, {"use_unsloth_gc": True}),
        (s.method == "freeze", {"freeze_trainable_layers": s.trainable_layers}),
        (s.packed_documents > 1, {"packing": True, "neat_packing": True}),
        (s.loss == "fused" or bool(named(s.fused_kernels)), {"enable_liger_kernel": True}),
        (s.upcast_modules == "norms", {"upcast_layernorm": True}),
        # otherwise what trains goes to float32 in this stack
        (s.trainable_dtype == "weight" and narrow, {"pure_bf16": True, "bf16": False}),
        (adapters, {"lora_rank": s.rank, "lora_alpha": s.alpha, "lora_dropout": s.dropout}),
        (adapters, {"lora_target": targets}),
        (adapters and bool(s.modules_to_save), {"additional_target": ",".join(s.modules_to_save)}),
        (adapters and s.method == "dora", {"use_dora": True}),
        (adapters and s.method == "rslora", {"use_rslora": True}),
        (s.quant_type != "none", {"quantization_bit": bits, "quantization_method": "bnb"}),
        (s.quant_type in ("nf4", "fp4"), four_bit),
    )


def _peft(model: str, s: Setup) -> dict[str, Any]:
    if not _adapters(s) or METHODS[s.method].peft_type not in ("LORA", "ADALORA"):
        raise UsageError(
            f"method {s.method} has no adapter_config.json that memplan writes: use lora, qlora, dora, "
            "rslora or adalora"
        )
    targets = (
        "all-linear"
        if s.targets == ("all-linear",)
        else None
        if s.targets == ("peft-default",)
        else list(s.targets)
    )
    document = {
        "peft_type": METHODS[s.method].peft_type,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model,
        "r": s.rank,
        "lora_alpha": s.alpha,
        "lora_dropout": s.dropout,
        "target_modules": targets,
        "modules_to_save": list(s.modules_to_save) or None,
        "target_parameters": list(s.target_parameters) or None,
        "layers_to_transform": list(s.layers_to_transform) or None,
        "use_dora": s.method == "dora",
        "use_rslora": s.method == "rslora",
        "bias": "none",
    }
    return document | ({"init_r": s.init_rank, "target_r": s.target_rank} if s.method == "adalora" else {})


STACKS: dict[str, Callable[[str, Setup], dict[str, Any]]] = {
    "axolotl": _axolotl,
    "trl": _trl,
    "llamafactory": _llamafactory,
    "peft": _peft,
}


@dataclass(frozen=True, slots=True)
class Emitted:
    """A configuration file: its text, the Setup that memplan reads back from it, and in words every setting
    that comes back different.
    """

    text: str
    setup: Setup
    differs: tuple[str, ...]


def emit_config(stack: str, model: Model, setup: Setup) -> Emitted:
    """A configuration file of a stack for this setup. Raises UsageError for a stack or a method that cannot
    be written.
    """
    if stack not in STACKS:
        raise unknown("stack", stack, STACKS)
    document = STACKS[stack](hub_id(model), setup)
    text = json.dumps(document, indent=2) + "\n" if stack == "peft" else _yaml(document)
    imported = read_document(
        parse(text, f"emitted.{'json' if stack == 'peft' else 'yaml'}"), FORMATS[stack], "emitted"
    )
    applied(imported, model)
    back = resolve({name: getattr(setup, name) for name in ("gpu", "device")}, imported=imported.fields)
    settled = _settled(stack, setup)
    differs = [
        f"{stack} does not say {name} = {_shown(getattr(setup, name))}: it becomes "
        f"{_shown(getattr(back, name))}"
        for name in FIELDS
        if name not in settled and getattr(setup, name) != getattr(back, name)
    ]
    return Emitted(
        text,
        back,
        (*differs, *(f"unknown to memplan itself: {report.key}" for report in imported.by_status("unknown"))),
    )


def _settled(stack: str, setup: Setup) -> tuple[str, ...]:
    """What is not compared: an adapter's file says nothing of the loop, and its `lora` is also the adapter of
    qlora; adapters in float32 are not upcast again; where no pictures are said a file has none.
    """
    if stack != "peft":
        upcast = ("trainable_dtype",) if _adapters(setup) and setup.adapter_dtype == "float32" else ()
        return (*UNSAID, *upcast, *(() if setup.images else ("images",)))
    adapted = ("rank", "alpha", "dropout", "targets", "target_parameters", "layers_to_transform")
    said = (*adapted, "modules_to_save", "init_rank", "target_rank")
    return tuple(name for name in FIELDS if name not in said)


def hub_id(model: Model) -> str:
    """The id under which training stacks find a model: the catalog's first Hugging Face id, else the name
    as given.
    """
    row = index().get(model.name)
    return str(row["ids"][0]) if row and row["ids"] else model.name


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _yaml(document: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
