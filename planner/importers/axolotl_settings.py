"""What an axolotl file means once all of it is read: settings that follow from several keys together."""

from __future__ import annotations

import re
from typing import Any

from memplan.planner.importers import axolotl_rl, patterns
from memplan.planner.importers.axolotl import LEGACY_ATTENTION
from memplan.planner.importers.changed import settle_overrides, settle_rows
from memplan.planner.importers.choices import settle_attention, settle_optimizer
from memplan.planner.importers.fsdp import settle_fsdp
from memplan.planner.importers.hf import packed_rows, settle_checkpointing
from memplan.planner.importers.liger import settle_named
from memplan.planner.importers.rules import SIDE, Facts, setup_fields
from memplan.planner.importers.sharding import stage_in_name
from memplan.planner.importers.tasks import settle_task
from memplan.planner.importers.trl import adapter_method


def finish(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    """Setup fields of a run, axolotl's own defaults where the file is silent: 512 tokens, micro-batch 1, bf16
    auto, no checkpointing.
    """
    facts.setdefault("micro_batch", 1)
    facts.setdefault("sequence_length", 512)
    _settle_precision(facts)
    _settle_checkpointing(facts, warnings)
    _settle_attention(facts, warnings)
    _settle_method(facts, warnings)
    settle_optimizer(facts, warnings)
    _settle_loss(facts, warnings)
    settle_named(facts, warnings)
    settle_rows(facts)
    settle_overrides(facts)
    _settle_accumulation(facts, warnings)
    for key, task in HEADS.items():
        if facts.get(key):
            facts["task"] = task
            settle_task(facts)
            if task == "prm":
                facts["num_labels"] = facts.get("_labels")
    if facts.get("_rl"):
        axolotl_rl.settle(facts, warnings)
    if facts.get("_packing"):
        packed_rows(facts, warnings)
    _settle_pictures(facts)
    if "_pad" in facts:
        facts["pad_to_multiple_of"] = _multiple(facts["_pad"], facts["sequence_length"])
    if (
        facts.get("_fsdp")
        or any(key in facts for key in ("_fsdp_offload", "_fsdp_checkpointing", "_strategy"))
        or "_shards" in facts
    ):
        facts["gpus"] = facts.get("_shards", 1)
        # axolotl 0.19 utils/schemas/validation.py check_fsdp_version_in_fsdp_config: 1 where none is named
        settle_fsdp(facts, warnings, version=1, trainer=True)
        # axolotl 0.18 loaders/model.py _build_model: rank 0 loads onto "cpu", the others onto "meta"
        if facts.get("_host_load") and facts.get("fsdp_version", 2) == 2:
            facts["load_on_host"] = True
        facts.setdefault("upcast_modules", "norms" if facts.get("_fp32_norms") else None)
    if facts.get("replicas", 1) > 1 and (facts.get("parallel"), facts.get("fsdp_version", 2)) != ("fsdp", 2):
        facts.pop("replicas")
        facts["_lacks"] = {**facts.get("_lacks", {}), "dp_replicate_size": "replicas beside shards"}
    _settle_stored(facts)
    return axolotl_rl.finished(facts, {**setup_fields(facts), "recipe": "axolotl"}, warnings)


def _settle_pictures(facts: Facts) -> None:
    """Pictures reach the model where the file names a processor and rows are not packed; without one, every
    row is text (axolotl 0.19 core/builders/causal.py build_collator). Its frozen parts: utils/freeze.py.
    """
    if not facts.get("_processor") or facts.get("_packing"):
        facts["images"] = ("none",)
    else:
        facts["images"] = (facts.get("_image_size", "usual"),)
    if facts.get("_frozen_parts"):
        facts |= {"vision_tower": "frozen", "projector": "frozen"}


def _settle_stored(facts: Facts) -> None:
    """Mxfp4Config with dequantize reads gpt-oss's experts in 16 bit (axolotl 0.19 loaders/model.py
    _set_quantization_config, transformers 5.24 integrations/mxfp4.py Mxfp4Dequantize): on the host where a
    model is cut across GPUs, since no device_map is set then.
    """
    if "_quantizer" not in facts:
        return
    arguments = facts.get("_quantizer_kwargs") or {}
    why = "a quantization other than bitsandbytes'"
    if facts["_quantizer"] == "Mxfp4Config" and arguments.get("dequantize") is True:
        facts["checkpoint_quant"] = "none"
        named = facts.get("_deepspeed")
        stage = stage_in_name(named) if isinstance(named, str) else None
        if facts.get("parallel") == "fsdp" or stage == 3:
            return
        why = "the experts of one layer at a time are dequantized beside what is loaded"
    facts["_lacks"] = {**facts.get("_lacks", {}), "model_quantization_config": why}


HEADS = {"_reward": "reward", "_steps": "prm"}
"""Switches of another head: axolotl 0.19 core/builders/causal.py, AxolotlRewardTrainer and AxolotlPRMTrainer are
TRL's.
"""


def _settle_accumulation(facts: Facts, warnings: list[str]) -> None:
    """batch_size over the micro-batch, on each rank (axolotl 0.19 utils/config/__init__.py normalize_config)."""
    if "_batch_size" not in facts:
        return
    if "gradient_accumulation" in facts:
        warnings.append("batch_size beside gradient_accumulation_steps: axolotl refuses both; it is left out")
    else:
        facts["gradient_accumulation"] = max(1, facts["_batch_size"] // facts["micro_batch"])


def _multiple(pad: bool, length: int) -> int:
    """Where pad_to_sequence_len is said, to a multiple of how many tokens a batch is padded: to the sequence
    length in steps of 64, or none (axolotl core/builders/causal.py build).
    """
    return 64 * -(-length // 64) if pad else 1


def _settle_loss(facts: Facts, warnings: list[str]) -> None:
    plugins = [plugin.lower() for plugin in facts.get("_plugins", ())]
    cut = facts.get("_cut_loss", any("cut_cross_entropy" in plugin for plugin in plugins))
    if facts.get("_fused_loss") or cut:
        facts["loss"] = "fused"
    elif facts.get("_chunked_loss"):
        facts["loss"] = "axolotl-chunked"
    if cut:
        warnings.append(
            "cut cross-entropy holds no logits at all: Liger's fused loss is assumed, so the prediction is "
            "on the high side"
        )
    if any("liger" not in plugin and "cut_cross_entropy" not in plugin for plugin in plugins):
        warnings.append(
            "a plugin other than Liger and cut cross-entropy is on: what it changes is not modeled"
        )


def _settle_precision(facts: Facts) -> None:
    """loaders and builders: bf16 or bfloat16 -> bfloat16 weights, fp16 or float16 -> float16, neither ->
    float32.
    """
    fp16 = facts.get("_fp16", "false") in ("true", "full") or facts.get("_float16", False)
    bf16 = facts.get("_bf16", "false" if fp16 or facts.get("_float32") else "auto")
    if bf16 != "false" or facts.get("_bfloat16"):
        facts["weight_dtype"] = "bfloat16"
        facts["autocast"] = "none" if bf16 == "full" else "bfloat16"
    elif fp16:
        facts["weight_dtype"], facts["autocast"] = "float16", "float16" if facts.get("_fp16") else "none"
    else:
        facts["weight_dtype"], facts["autocast"] = "float32", "none"


def _settle_checkpointing(facts: Facts, warnings: list[str]) -> None:
    """Its offloading takes the place of checkpoints where adapters are trained, and goes with them, not
    reentrant, otherwise (axolotl 0.19 core/builders/base.py _configure_gradient_checkpointing, loaders/model.py
    _apply_activation_checkpointing). `gradient_checkpointing: offload` is an older name of it
    (utils/schemas/validation.py).
    """
    word = facts.get("_gc", "false")
    facts["_checkpointing"] = word != "false"
    settle_checkpointing(facts, warnings, False, reentrant=False)
    offload = "streams" if word in ("offload", "offload_disk") else facts.get("_offload", "false")
    if word == "unsloth":
        facts["checkpoint_offload"] = True
    if offload == "false":
        return
    if word == "false":
        warnings.append("axolotl refuses activation_offloading without gradient_checkpointing: left out")
    elif offload == "hidden_states":
        facts["checkpoint_offload"] = True
        facts["_lacks"] = {"activation_offloading": "hidden_states: the inputs of two layers wait on the GPU"}
    else:
        adapters = facts.get("_adapter", "none") != "none"
        facts["checkpointing"] = "none" if adapters else "non_reentrant"
        hook = "axolotl" if adapters else "trl"
        facts["activation_offload"] = hook if offload == "streams" else f"{hook}-synchronous"


def _settle_attention(facts: Facts, warnings: list[str]) -> None:
    for key, name in LEGACY_ATTENTION.items():
        if facts.get(f"_{key}"):
            facts.setdefault("attention", name)
    settle_attention(facts, warnings)


ADAPTER_ALONE = ("rank", "alpha", "dropout", "target_parameters", "layers_to_transform")
"""Fields that mean nothing without an adapter."""


def _settle_method(facts: Facts, warnings: list[str]) -> None:
    adapter = facts.get("_adapter", "none")
    four_bit = bool(facts.get("_four_bit")) and adapter != "none"
    facts["method"] = adapter_method(facts, adapter != "none", four_bit)
    if adapter == "qlora" and not four_bit:
        warnings.append("adapter qlora without load_in_4bit: axolotl requires it; 4-bit is assumed")
        facts["method"] = "qlora"
    if facts["method"] == "full":
        for name in (*ADAPTER_ALONE, "modules_to_save"):
            facts.pop(name, None)
        if facts.get("_four_bit") or facts.get("_eight_bit"):
            warnings.append(
                "load_in_4bit and load_in_8bit without an adapter: ignored, as nothing could train"
            )
        return
    _settle_unfrozen(facts, warnings)
    if facts.get("_eight_bit") and not four_bit:
        facts["quant_type"] = "int8"
    targets = patterns.settle(facts.get("_targets", ()), warnings)
    alone: tuple[str, ...] | None = () if facts.get("target_parameters") else None
    facts["targets"] = ("all-linear",) if facts.get("_linear") else targets or alone
    if facts["targets"] is None:
        warnings.append(
            "neither lora_target_modules nor lora_target_linear: PEFT's own targets for this model are "
            "assumed"
        )
        facts["targets"] = ("peft-default",)
    if facts.get("_upcast_adapters") is False and not facts.get("_fp32_gradients"):
        facts["adapter_dtype"] = facts["weight_dtype"]
    _settle_quantization(facts, warnings)


def _settle_unfrozen(facts: Facts, warnings: list[str]) -> None:
    """Beside an adapter the patterns are matched from the start of the adapted model's names, and what none
    names is frozen, adapters included (axolotl 0.19 train.py setup_model_and_tokenizer, utils/freeze.py).
    """
    patterns = facts.pop("trained_parameters", None)
    if patterns and any(_may_begin(pattern, "base_model.") for pattern in patterns):
        facts["_lacks"] = {"unfrozen_parameters": "names of an adapted model's parameters"}
    elif patterns:
        warnings.append(
            "unfrozen_parameters names nothing of an adapted model, whose names begin with base_model.model.: "
            f"axolotl then trains nothing, adapters included; they are counted as trained{SIDE['high']}"
        )


def _may_begin(pattern: str, name: str) -> bool:
    """Whether a pattern can match at the start of names that begin so: not where its first letters, up to
    anything that is no letter, are others.
    """
    letters, rest = re.fullmatch(r"\^?(\w*)(.*)", pattern, re.DOTALL).groups()  # type: ignore[union-attr]
    plain = letters[:-1] if rest[:1] in tuple("*?{|") else letters
    return "|" in rest or plain[: len(name)] == name[: len(plain)]


_BNB = {
    "bnb_4bit_quant_type": "quant_type",
    "bnb_4bit_use_double_quant": "double_quant",
    "bnb_4bit_compute_dtype": "compute_dtype",
    "bnb_4bit_quant_storage": "quant_storage",
}


def _settle_quantization(facts: Facts, warnings: list[str]) -> None:
    if facts.get("_quantize_experts"):
        if facts["method"] == "qlora" or facts.get("quant_type") in ("nf4", "fp4"):
            facts["quantize_experts"] = True
            if facts.get("_linear"):
                warnings.append("axolotl refuses lora_target_linear with quantize_moe_experts: name modules")
        elif facts.get("quant_type") == "int8":  # its experts' own 8-bit class skips k-bit preparation too
            facts["upcast_modules"] = "routers"
            warnings.append(
                "quantize_moe_experts with load_in_8bit is not modeled: experts in 8 bits, so the prediction "
                "errs on the high side"
            )
        else:
            warnings.append("quantize_moe_experts without a quantized base: axolotl refuses it; ignored")
    for key, value in (facts.get("_bnb") or {}).items():
        name = _BNB.get(str(key))
        if name is None:
            warnings.append(f"bnb_config_kwargs.{str(key)[:40]} is not modeled")
        else:
            facts[name] = value.removeprefix("torch.") if isinstance(value, str) else value
