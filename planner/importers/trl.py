"""TRL's `--config` YAML and its command line (1.16): ScriptArguments, SFTConfig and ModelConfig in one flat
table.
"""

from __future__ import annotations

from typing import Any

from memplan.planner.importers.choices import ATTENTION
from memplan.planner.importers.hf import TRAINING, keyword_arguments, packed_rows, settle
from memplan.planner.importers.ppo import FINISHES
from memplan.planner.importers.rules import (
    STORAGE,
    Facts,
    Rule,
    dtype,
    flag,
    ignored,
    integer,
    names,
    not_modelled,
    number,
    one_of,
    one_of_text,
    setup_fields,
    text,
    use,
)
from memplan.planner.importers.tasks import settle_task


def _multiple(key: str, value: Any) -> int:
    """TRL's auto is no multiple on a GPU (trl 1.16 trainer/sft_config.py)."""
    return 1 if value in ("auto", "none", "null") else integer(key, value)


RULES: dict[str, Rule] = {
    **TRAINING,
    "model_name_or_path": use("_model", text),
    "dtype": use("_dtype", dtype),
    "torch_dtype": use("_dtype", dtype),
    "attn_implementation": use("attention", text),
    "use_peft": use("_peft", flag),
    "lora_r": use("rank", integer),
    "lora_alpha": use("alpha", number),
    "lora_dropout": use("dropout", number),
    "lora_target_modules": use("targets", names),
    "lora_modules_to_save": use("modules_to_save", names),
    "use_rslora": use("_rslora", flag),
    "env": not_modelled(
        "the allocator's settings: --set allocator=expandable says expandable segments",
        matters=lambda key, value: "ALLOC_CONF" in str(value),
    ),
    "use_dora": use("_dora", flag),
    "load_in_4bit": use("_four_bit", flag),
    "load_in_8bit": use("_eight_bit", flag),
    "bnb_4bit_quant_type": use("quant_type", one_of_text("nf4", "fp4")),
    "use_bnb_nested_quant": use("double_quant", flag),
    "bnb_4bit_quant_storage": use("quant_storage", one_of(STORAGE)),
    "max_length": use("_length", integer),
    "max_seq_length": use("_length", integer),
    "packing": use("_packing", flag),
    "padding_free": use("_padding_free", flag),
    "model_init_kwargs": use("_init", keyword_arguments),
    "activation_offloading": use("_offloads", flag, "saved tensors go to the host"),
    "lora_target_parameters": use("target_parameters", names),
    "use_vllm": not_modelled("a generation engine beside the trainer", errs="low"),
    "loss_type": not_modelled("a loss other than the fused negative log-likelihood", ("nll", "chunked_nll")),
    "beta": not_modelled("preference training holds a reference model and twice the rows", errs="low"),
    **ignored(
        "numbers and lengths of a preference loss, reported by beta",
        "max_prompt_length max_completion_length num_generations",
    ),
    **ignored(
        "names data or a template, or which tokens count in the loss",
        """
        dataset_* datasets streaming chat_template test_split_size ignore_bias_buffers chat_template_path eos_token pad_token
        completion_only_loss assistant_only_loss shuffle_dataset truncation_mode eval_packing
    """,
    ),
    "packing_strategy": use("_strategy", text),
    **ignored(
        "which revision, or which class for the adapter",
        "model_revision trust_remote_code lora_task_type config",
    ),
    "pad_to_multiple_of": use("pad_to_multiple_of", _multiple, "read with --lengths"),
    "router_aux_loss_coef": Rule("ignored", why="a scalar of the loss"),
}


def finish(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    """Setup fields of a run of one of TRL's trainers (`task`; SFT where no name says one), TRL's own defaults where the file is silent: batch 8, 1,024 tokens, float32
    weights.
    """
    _settle_model(facts)
    settle(facts, warnings, checkpointing=True, bf16=True)
    facts["sequence_length"] = facts.get("_length", 1024)
    _settle_batches(facts, warnings)
    _settle_method(facts, warnings)
    if facts.get("_offloads"):
        facts["activation_offload"] = "trl"
    if facts.pop("_liger", False):
        facts["loss"] = "chunked"  # TRL rejects Liger's fused loss; its own is in tiles
    settle_task(facts)
    fields = {**setup_fields(facts), "recipe": "trl"}
    finished = FINISHES.get(str(facts.get("task")))
    return fields if finished is None else finished(facts, fields, warnings)


def _settle_model(facts: Facts) -> None:
    """Dtype and attention, which a file says itself or among `model_init_kwargs`."""
    init = facts.get("_init", {})
    said = init.get("dtype", init.get("torch_dtype"))
    if said is not None:
        facts["_dtype"] = dtype("model_init_kwargs.dtype", said)
    if init.get("attn_implementation"):
        named = text("model_init_kwargs.attn_implementation", init["attn_implementation"])
        facts.setdefault("attention", named)
    facts["attention"] = facts.get("attention", ATTENTION["sdpa"])
    if "_dtype" in facts:  # auto is the checkpoint's own, which for today's models is bfloat16
        facts["weight_dtype"] = facts["_dtype"] or "bfloat16"


def _settle_batches(facts: Facts, warnings: list[str]) -> None:
    packed = facts.get("_packing") and facts.get("_strategy", "bfd") != "wrapped"
    if facts.get("_packing"):
        facts["padded"] = False
    elif facts.get("_padding_free"):
        facts["padding_free"] = True
    if not (facts.get("_padding_free") or packed):
        return
    packed_rows(facts, warnings)
    if facts["attention"] != "flash_attention_2":
        warnings.append(
            "padding-free batches become one long row: its mask without flash attention is not modeled"
        )


ADAPTER_FIELDS = ("rank", "alpha", "dropout", "targets", "target_parameters", "modules_to_save")


def _settle_method(facts: Facts, warnings: list[str]) -> None:
    """The method, and what TRL's defaults say of adapters and quantization that it does not make."""
    peft, four_bit, eight_bit = facts.get("_peft", False), facts.get("_four_bit"), facts.get("_eight_bit")
    quantized = four_bit or eight_bit
    if quantized and not peft:
        warnings.append("load_in_4bit and load_in_8bit train nothing without use_peft: adapters are assumed")
    facts["method"] = adapter_method(facts, bool(peft or quantized), bool(four_bit))
    if eight_bit:
        facts["quant_type"] = "int8"
    unused = () if peft or quantized else ADAPTER_FIELDS
    if not four_bit:
        kind = ("quant_type",) if facts.get("quant_type") in ("nf4", "fp4") else ()
        unused = (*unused, "double_quant", "quant_storage", *kind)
    for name in unused:
        facts.pop(name, None)


def adapter_method(facts: Facts, adapters: bool, four_bit: bool) -> str:
    """The method's name for a stack that says full / LoRA / DoRA / rsLoRA and 4-bit in separate switches."""
    if not adapters:
        return "full"
    if facts.get("_dora"):
        if four_bit:
            facts.setdefault("quant_type", "nf4")
        return "dora"
    if four_bit:
        facts.setdefault("quant_type", "nf4")
        return "qlora"
    return "rslora" if facts.get("_rslora") else "lora"
