"""Unsloth's command line (unsloth train, unsloth_cli/config.py of August 2026) and its configuration file:
model, training and lora.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.planner.importers.hf import settle
from memplan.planner.importers.rules import (
    Facts,
    Rule,
    flag,
    ignored,
    integer,
    names,
    nested,
    not_modelled,
    number,
    one_of_text,
    setup_fields,
    text,
    use,
)
from memplan.planner.importers.trl import adapter_method

NEAREST = (
    "Unsloth's own kernels and checkpointing are not modeled: the nearest, the recipe hf with a fused loss, is on "
    "the high side but for that loss, which takes up to half of the memory that is free"
)
MODELS = ("FastLanguageModel", "FastModel", "FastVisionModel", "FastTextModel")
"""The classes that a script loads a model with."""
MIXERS = ("fla",)
"""It ships flash-linear-attention's kernels (unsloth 2026.10.9 models/loader.py FLA_MODEL_TYPE_PREFIXES)."""
WHERE = "which parts of a model of pictures get adapters; a model of text reads none of it"
PARTS = tuple(
    f"finetune_{part}" for part in ("vision_layers", "language_layers", "attention_modules", "mlp_modules")
)
"""unsloth 2026.8 studio/backend/core/training/trainer.py prepare_model_for_training."""
SECTIONS = ("training", "lora", "data", "logging")
WORDS: dict[str, Rule] = {
    "model": use("_model", text),
    "training_type": use("_tuner", one_of_text("lora", "full")),
    "max_seq_length": use("sequence_length", integer),
    "load_in_4bit": use("_four_bit", flag),
    "batch_size": use("_batch", integer),
    "gradient_accumulation_steps": use("gradient_accumulation", integer),
    "gradient_checkpointing": use("_checkpoint", text),
    "lora_r": use("rank", integer),
    "lora_alpha": use("alpha", number),
    "lora_dropout": use("dropout", number),
    "target_modules": use("targets", names),
    "use_rslora": use("_rslora", flag),
    "use_dora": use("_dora", flag),
    **dict.fromkeys(PARTS, Rule("not_modelled", why=WHERE, harmless=(None, True))),
    "vision_all_linear": not_modelled(WHERE),
    **ignored(
        "data, logging and the optimizer's numbers",
        """
        dataset local_dataset format_type output_dir num_epochs learning_rate warmup_steps max_steps
        save_steps weight_decay random_seed packing train_on_completions enable_* wandb_* tensorboard_dir
        hf_token use_loftq config dry_run
        """,
    ),
}


RULES: dict[str, Rule] = {**WORDS, **dict.fromkeys(SECTIONS, nested(WORDS))}
"""The command line has the words of a file's sections without them."""


def recognize(document: Mapping[str, Any]) -> bool:
    """Whether this is a file of Unsloth."""
    training = document.get("training")
    return "model" in document and isinstance(training, Mapping) and "training_type" in training


def finish(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    """Setup fields, with Unsloth's defaults where the words are silent: 4-bit LoRA of rank 64, batch 2,
    2,048 tokens, adamw_8bit.
    """
    checkpoint = str(facts.get("_checkpoint", "unsloth")).lower() not in ("none", "false")
    settle(facts, warnings, batch=2, checkpointing=checkpoint, bf16=True)
    adapters = facts.get("_tuner", "lora") != "full"
    four_bit = adapters and facts.get("_four_bit", True)
    facts["method"] = adapter_method(facts, adapters, four_bit)
    facts.setdefault("sequence_length", 2048)
    facts.setdefault("optimizer", "adamw_bnb_8bit")
    if adapters:
        facts.setdefault("rank", 64)
        facts.setdefault("alpha", 16)
        facts.setdefault("dropout", 0.0)
        facts.setdefault("targets", ("all-linear",))
    else:
        for name in ("rank", "alpha", "dropout", "targets"):
            facts.pop(name, None)
    warnings.append(NEAREST)
    return {**setup_fields(facts), "recipe": "hf", "loss": "fused", "mixer_kernels": MIXERS}


def script_facts(facts: Facts, whole: bool) -> None:
    """What Unsloth's own calls leave out, before the trainer's arguments are settled: a 4-bit base, LoRA of
    rank 16 on every linear layer, checkpoints (unsloth 2026.10 models/loader.py from_pretrained, models/llama.py
    get_peft_model). `whole`: every parameter trains.
    """
    wide = whole or facts.get("_eight_bit") or facts.pop("_sixteen_bit", False)
    facts.setdefault("_four_bit", not wide)
    if facts.get("_peft"):
        facts.setdefault("_checkpointing", True)
        for name, value in {"rank": 16, "alpha": 16, "dropout": 0.0, "targets": ("all-linear",)}.items():
            facts.setdefault(name, value)


def script_fields(
    facts: Facts, fields: dict[str, Any], bfloat16: bool, warnings: list[str]
) -> dict[str, Any]:
    """The Setup fields of a script of Unsloth, from those of the trainer that it calls: half precision as the
    GPU has it, NF4 with double quantization and no upcast, adapters in fp32, a loss in chunks (unsloth 2026.10
    models/llama.py, unsloth_zoo training_utils.py prepare_model_for_training, fused_losses).
    """
    half = facts.get("weight_dtype") or ("bfloat16" if bfloat16 else "float16")
    warnings[:] = [warning for warning in warnings if not warning.startswith("TRL loads float32")]
    warnings.append(NEAREST)
    own = {"recipe": "hf", "loss": "fused", "weight_dtype": half, "mixer_kernels": MIXERS}
    if not (facts.get("_bf16") or facts.get("_fp16")):
        own["autocast"] = half
    if facts.get("_four_bit"):
        own |= {"quant_type": "nf4", "compute_dtype": half, "quant_storage": "uint8"}
        own |= {"double_quant": True, "kbit_prepare": False}
    return {**fields, **own}
