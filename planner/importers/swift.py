"""ms-swift's command line and its YAML (4.6, swift/arguments and swift/trainers/arguments.py): transformers'
training arguments, with words of its own for the model, adapters and quantization.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.planner.importers.choices import ATTENTION
from memplan.planner.importers.hf import TRAINING, settle
from memplan.planner.importers.rules import (
    PICTURES,
    STORAGE,
    TOWER,
    Facts,
    Rule,
    dtype,
    flag,
    frozen,
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
from memplan.planner.importers.trl import adapter_method


def _bits(key: str, value: Any) -> int:
    return integer(key, value)


def _attention(key: str, value: Any) -> str:
    """swift/model/utils.py AttnImpl.update_attn_impl: flash_attn is flash_attention_2."""
    return {"flash_attn": "flash_attention_2"}.get(name := text(key, value), name)


RULES: dict[str, Rule] = {
    **TRAINING,
    "model": use("_model", text),
    "model_id_or_path": use("_model", text),
    **{name: use("_tuner", text) for name in ("tuner_type", "train_type", "sft_type")},
    "lora_rank": use("rank", integer),
    "lora_alpha": use("alpha", number),
    "lora_dropout": use("dropout", number),
    "target_modules": use("targets", names),
    "modules_to_save": use("modules_to_save", names),
    "use_dora": use("_dora", flag),
    "use_rslora": use("_rslora", flag),
    "torch_dtype": use("_dtype", dtype),
    "attn_impl": use("attention", _attention),
    "max_length": use("sequence_length", integer),
    "quant_method": use("_quant", text),
    "quant_bits": use("_bits", _bits),
    "bnb_4bit_quant_type": use("quant_type", one_of_text("nf4", "fp4")),
    "bnb_4bit_use_double_quant": use("double_quant", flag),
    "bnb_4bit_compute_dtype": use("compute_dtype", dtype),
    "bnb_4bit_quant_storage": use("quant_storage", one_of(STORAGE)),
    "packing": not_modelled("packed rows, whose mask differs"),
    "padding_free": not_modelled("one long row without padding"),
    "freeze_vit": use("vision_tower", frozen),
    "freeze_aligner": use("projector", frozen),
    "max_pixels": use("image_scaled_to", integer),
    "use_galore": not_modelled("ms-swift's own GaLore, whose states are smaller than AdamW's", errs="high"),
    **ignored("details of something that is reported where it is on", "galore_*"),
    "video_max_pixels": use("video_scaled_to", integer),
    "fps": use("video_fps", number),
    "fps_max_frames": use("video_frames", integer),
    **{name: not_modelled(PICTURES, errs="low") for name in ("video_max_token_num", "image_max_token_num")},
    "rlhf_type": not_modelled("preference training holds more rows and models", errs="low"),
    "use_vllm": not_modelled("a generation engine beside the trainer", errs="low"),
    "sequence_parallel_size": not_modelled("a row is shared among GPUs", (1, "1"), errs="high"),
    "vit_gradient_checkpointing": not_modelled("checkpoints in the vision tower alone", (True, "true")),
    "lora_bias": not_modelled("trained biases"),
    **ignored(
        "names data or a template, or which tokens count in the loss",
        """
        dataset* val_dataset* split_dataset_ratio system template* truncation_strategy
        num_train_epochs streaming load_from_cache_file loss_scale agent_template response_prefix columns
        custom_* model_author
        model_name model_type task_type use_hf model_revision hub_token lazy_tokenize strict
        """,
    ),
    **ignored("numbers of the optimizer", "aligner_lr vit_lr"),
}


VARIABLES = (
    *("MAX_PIXELS", "VIDEO_MAX_PIXELS", "FPS", "FPS_MAX_FRAMES"),
    *("IMAGE_MAX_TOKEN_NUM", "VIDEO_MAX_TOKEN_NUM"),
)
"""Variables before its launch line, which it and qwen-vl-utils read (qwen_vl_utils/vision_process.py)."""


def recognize(document: Mapping[str, Any]) -> bool:
    """Whether this is a file of ms-swift."""
    return "model" in document and any(
        name in document for name in ("tuner_type", "train_type", "quant_bits", "attn_impl")
    )


def finish(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    """Setup fields, ms-swift's defaults where the words are silent: LoRA of rank 8 on every linear layer,
    batch 1, checkpointing, the checkpoint's dtype.
    """
    # swift/trainers/mixin.py _fix_gradient_checkpointing: reentrant but under plain DDP
    plain = facts.get("gpus", 1) > 1 and facts.get("parallel", "ddp") == "ddp"
    settle(facts, warnings, batch=1, checkpointing=True, bf16=True, reentrant=not plain)
    if facts.get("_dtype"):
        facts["weight_dtype"] = facts["_dtype"]
    facts["attention"] = facts.get("attention", ATTENTION["sdpa"])
    four_bit = facts.get("_bits") == 4
    tuner = str(facts.get("_tuner", "lora")).lower()
    adapters = tuner != "full"
    if tuner not in ("lora", "full"):
        warnings.append("a tuner other than lora and full is planned as lora")
    facts["method"] = adapter_method(facts, adapters, four_bit)
    if facts.get("_bits") == 8:
        facts["quant_type"] = "int8"
    if adapters and facts.get("_bits"):  # no prepare_model_for_kbit_training (swift/pipelines/train/tuner.py)
        facts["kbit_prepare"] = False
    if adapters:
        facts |= {"rank": facts.get("rank", 8), "alpha": facts.get("alpha", 32)}
        facts |= {"dropout": facts.get("dropout", 0.05), "targets": facts.get("targets", ("all-linear",))}
    else:
        for name in ("rank", "alpha", "dropout", "targets", "modules_to_save"):
            facts.pop(name, None)
    if not four_bit:
        for name in ("double_quant", "quant_storage", "compute_dtype"):
            facts.pop(name, None)
        if facts.get("quant_type") in ("nf4", "fp4"):
            facts.pop("quant_type")
    shown = {"image_scaled_to": "max_pixels", "video_scaled_to": "video_max_pixels"}
    shown |= {"video_frames": "fps_max_frames", "video_fps": "fps"}
    facts["_lacks"] = {key: PICTURES for name, key in shown.items() if facts.get(name)}
    if facts["_lacks"]:
        facts["images"] = ("usual",)
    if facts.get("vision_tower") == "trained":
        facts["_lacks"] = {**facts.get("_lacks", {}), "freeze_vit": TOWER}
    for part in ("vision_tower", "projector"):  # ms-swift arguments/tuner_args.py freeze_vit, freeze_aligner
        facts.setdefault(part, "frozen")
    if "sequence_length" not in facts:
        warnings.append("no max_length: ms-swift takes rows up to the model's own length, 2,048 are assumed")
    facts["_notes"] = [
        "ms-swift's defaults on the recipe hf, the nearest: it has no recipe of its own, and keeps the logits "
        "of an answer's tokens alone (use_logits_to_keep), which may need less"
    ]
    return {**setup_fields(facts), "recipe": "hf"}
