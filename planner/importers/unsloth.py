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
    number,
    one_of_text,
    setup_fields,
    text,
    use,
)
from memplan.planner.importers.trl import adapter_method

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
    **ignored(
        "data, logging and the optimizer's numbers",
        """
        dataset local_dataset format_type output_dir num_epochs learning_rate warmup_steps max_steps
        save_steps weight_decay random_seed packing train_on_completions enable_* wandb_* tensorboard_dir
        hf_token use_loftq vision_all_linear finetune_* config dry_run
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
    warnings.append(
        "Unsloth's own kernels and checkpointing are not modeled: the recipe hf, the nearest, is on the "
        "high side"
    )
    return {**setup_fields(facts), "recipe": "hf"}
