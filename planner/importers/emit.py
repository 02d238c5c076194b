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

from memplan.planner.importers.document import parse
from memplan.planner.importers.files import FORMATS, read_document
from memplan.planner.inputs.models import Model, index
from memplan.planner.inputs.setup import FIELDS, Setup, resolve
from memplan.planner.tables.errors import UsageError, unknown
from memplan.planner.tables.methods import METHODS

UNSAID = (
    "recipe",
    "gpu",
    "device",
    "load",
    "allocator",
    "retain_outputs",
    "zero_grad",
    "optimizer_mode",
    "origins",
    "importance_buffers",
)
"""Fields that no training file says: they belong to the machine, to the loop, or follow from others."""


def _adapters(setup: Setup) -> bool:
    return METHODS[setup.method].trains == "adapter"


def _axolotl(model: str, s: Setup) -> dict[str, Any]:
    quantized = s.quant_type in ("nf4", "fp4")
    document: dict[str, Any] = {
        "base_model": model,
        "datasets": [{"path": "YOUR_DATASET", "type": "alpaca"}],
        "output_dir": "./outputs",
    }
    if _adapters(s):
        document |= {
            "adapter": "qlora" if quantized else "lora",
            "lora_r": s.rank,
            "lora_alpha": s.alpha,
            "lora_dropout": s.dropout,
        }
        document |= (
            {"lora_target_linear": True}
            if s.targets == ("all-linear",)
            else {"lora_target_modules": list(s.targets)}
        )
        document |= {"lora_modules_to_save": list(s.modules_to_save)} if s.modules_to_save else {}
        document |= {"peft_use_dora": True} if s.method == "dora" else {}
        document |= {"peft_use_rslora": True} if s.method == "rslora" else {}
        document |= {"peft_autocast_adapter_dtype": False} if s.adapter_dtype != "float32" else {}
        document |= {
            "lora_mlp_kernel": False,
            "lora_qkv_kernel": False,
            "lora_o_kernel": False,
            "lora_embedding_kernel": False,
        }
    document |= {"load_in_4bit": quantized, "load_in_8bit": s.quant_type == "int8"}
    if quantized:
        document["bnb_config_kwargs"] = {
            "bnb_4bit_quant_type": s.quant_type,
            "bnb_4bit_use_double_quant": s.double_quant,
            "bnb_4bit_quant_storage": s.quant_storage,
        }
    document |= {
        "sequence_len": s.sequence_length,
        "micro_batch_size": s.micro_batch,
        "gradient_accumulation_steps": s.gradient_accumulation,
        "sample_packing": s.packed_documents > 1,
        "optimizer": s.optimizer,
        "learning_rate": 0.0002,
        "num_epochs": 1,
    }
    document |= {"bf16": "full" if s.autocast == "none" else True} if s.weight_dtype == "bfloat16" else {}
    document |= {"bf16": False, "fp16": True} if s.weight_dtype == "float16" else {}
    document |= {"bf16": False, "float32": True} if s.weight_dtype == "float32" else {}
    document["gradient_checkpointing"] = "offload" if s.checkpoint_offload else s.checkpointing != "none"
    if s.checkpointing != "none":
        document["gradient_checkpointing_kwargs"] = {"use_reentrant": s.checkpointing == "reentrant"}
    document["attn_implementation"] = s.attention.split("-")[0]
    document |= (
        {"liger_fused_linear_cross_entropy": True, "plugins": ["axolotl.integrations.liger.LigerPlugin"]}
        if s.loss == "fused"
        else {}
    )
    document |= {"chunked_cross_entropy": True} if s.loss == "chunked" else {}
    document |= (
        {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}, "dp_shard_size": s.gpus}
        if s.parallel == "fsdp"
        else {}
    )
    return document


def _training(s: Setup) -> dict[str, Any]:
    document: dict[str, Any] = {
        "per_device_train_batch_size": s.micro_batch,
        "gradient_accumulation_steps": s.gradient_accumulation,
        "optim": s.optimizer,
        "output_dir": "./outputs",
        "learning_rate": 0.0002,
        "num_train_epochs": 1,
        "bf16": s.autocast == "bfloat16",
        "fp16": s.autocast == "float16",
    }
    return document


def _trl(model: str, s: Setup) -> dict[str, Any]:
    document = {
        "model_name_or_path": model,
        "dataset_name": "YOUR_DATASET",
        "dtype": s.weight_dtype,
        "max_length": s.sequence_length,
        **_training(s),
    }
    document |= {
        "gradient_checkpointing": s.checkpointing != "none",
        "attn_implementation": s.attention.split("-")[0],
    }
    if s.checkpointing != "none":
        document["gradient_checkpointing_kwargs"] = {"use_reentrant": s.checkpointing == "reentrant"}
        document["gradient_checkpointing_kwargs"] |= (
            {"every_n_layers": s.checkpoint_every} if s.checkpoint_every > 1 else {}
        )
    document |= {"packing": True} if s.packed_documents > 1 else {}
    if _adapters(s):
        document |= {"use_peft": True, "lora_r": s.rank, "lora_alpha": s.alpha, "lora_dropout": s.dropout}
        document |= {"lora_target_modules": list(s.targets)} if s.targets != ("peft-default",) else {}
        document |= {"lora_modules_to_save": list(s.modules_to_save)} if s.modules_to_save else {}
        document |= {"use_dora": True} if s.method == "dora" else {}
        document |= {"use_rslora": True} if s.method == "rslora" else {}
    if s.quant_type in ("nf4", "fp4"):
        document |= {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": s.quant_type,
            "use_bnb_nested_quant": s.double_quant,
            "bnb_4bit_quant_storage": s.quant_storage,
        }
    return document | ({"load_in_8bit": True} if s.quant_type == "int8" else {})


FLASH = {"eager": "disabled", "sdpa": "sdpa", "flash_attention_2": "fa2"}


def _llamafactory(model: str, s: Setup) -> dict[str, Any]:
    document = {
        "model_name_or_path": model,
        "stage": "sft",
        "do_train": True,
        "dataset": "YOUR_DATASET",
        "template": "default",
        "cutoff_len": s.sequence_length,
        **_training(s),
    }
    document |= {
        "finetuning_type": "lora" if _adapters(s) else s.method,
        "flash_attn": FLASH.get(s.attention, "sdpa"),
    }
    document |= {
        "disable_gradient_checkpointing": s.checkpointing == "none",
        "use_reentrant_gc": s.checkpointing == "reentrant",
    }
    document |= {"use_unsloth_gc": True} if s.checkpoint_offload else {}
    document |= {"freeze_trainable_layers": s.trainable_layers} if s.method == "freeze" else {}
    document |= {"packing": True, "neat_packing": True} if s.packed_documents > 1 else {}
    document |= {"enable_liger_kernel": True} if s.loss == "fused" else {}
    document |= {"upcast_layernorm": True} if s.upcast_modules == "norms" else {}
    if s.trainable_dtype == "weight" and (
        s.autocast == "none" or (s.weight_dtype == "bfloat16" and not _adapters(s))
    ):
        document |= {"pure_bf16": True, "bf16": False}  # otherwise what trains goes to float32 in this stack
    if _adapters(s):
        document |= {"lora_rank": s.rank, "lora_alpha": s.alpha, "lora_dropout": s.dropout}
        document |= {"lora_target": "all" if s.targets == ("all-linear",) else ",".join(s.targets)}
        document |= {"additional_target": ",".join(s.modules_to_save)} if s.modules_to_save else {}
        document |= {"use_dora": True} if s.method == "dora" else {}
        document |= {"use_rslora": True} if s.method == "rslora" else {}
    if s.quant_type != "none":
        document |= {"quantization_bit": 8 if s.quant_type == "int8" else 4, "quantization_method": "bnb"}
    if s.quant_type in ("nf4", "fp4"):
        document |= {"quantization_type": s.quant_type, "double_quantization": s.double_quant}
    return document


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
    qlora; adapters in float32 are not upcast again.
    """
    if stack != "peft":
        return (
            (*UNSAID, "trainable_dtype") if _adapters(setup) and setup.adapter_dtype == "float32" else UNSAID
        )
    said = ("rank", "alpha", "dropout", "targets", "modules_to_save", "init_rank", "target_rank")
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
