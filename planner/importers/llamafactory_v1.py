"""LLaMA-Factory's second arguments (USE_V1=1, src/llamafactory/v1 of 2026-08): a loop of its own, so the
nearest recipe is raw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.planner.importers.choices import settle_attention
from memplan.planner.importers.hf import DETERMINISTIC, packed_rows
from memplan.planner.importers.rules import (
    STORAGE,
    Facts,
    Rule,
    flag,
    ignored,
    integer,
    names,
    nested,
    not_modelled,
    number,
    one_of,
    one_of_text,
    setup_fields,
    text,
    use,
)
from memplan.planner.importers.trl import adapter_method
from memplan.planner.tables.errors import UsageError

SECTIONS = ("peft_config", "quant_config", "dist_config", "kernel_config", "train_dataset", "model_class")


def recognize(document: Mapping[str, Any]) -> bool:
    """`model` as plain text beside one of v1's own sections; torchtune's `model` is a mapping."""
    return isinstance(document.get("model"), str) and any(name in document for name in SECTIONS)


RULES: dict[str, Rule] = {
    "model": use("_model", text),
    "flash_attn": use("attention", text),
    "micro_batch_size": use("micro_batch", integer),
    "global_batch_size": not_modelled("the global batch decides the accumulation"),
    "model_class": not_modelled("another head, or a model of more than text", ("llm",)),
    "cutoff_len": use("sequence_length", integer),
    "bf16": use("_bf16", flag, "what FSDP2 computes in"),
    "batching_strategy": use(
        "_batching", one_of_text("normal", "padding_free", "dynamic_batching", "dynamic_padding_free")
    ),
    "enable_activation_checkpointing": use("_checkpointing", flag),
    "peft_config": nested(
        {
            "name": use("_peft", one_of_text("lora", "freeze")),
            "r": use("rank", integer),
            "lora_alpha": use("alpha", number),
            "lora_dropout": use("dropout", number),
            "target_modules": use("targets", names),
            "modules_to_save": use("modules_to_save", names),
            "use_rslora": use("_rslora", flag),
            "use_dora": use("_dora", flag),
            "freeze_trainable_layers": use("trainable_layers", integer),
            "cast_trainable_params_to_fp32": use("_cast", flag),
            "freeze_trainable_modules": not_modelled(
                "only some modules of the last layers train", ("all",), errs="high"
            ),
            "freeze_extra_modules": not_modelled("modules outside the layers train too", errs="low"),
            "adapter_name_or_path": not_modelled("the rank and targets of an existing adapter"),
            **ignored("export", "export_* infer_dtype"),
        }
    ),
    "quant_config": nested(
        {
            "name": use("_quantizer", one_of_text("bnb", "auto")),
            "quantization_bit": use("_bit", integer),
            "compute_dtype": use("quant_storage", one_of(STORAGE), "the storage dtype too"),
            "double_quantization": use("double_quant", flag),
            "quantization_type": use("quant_type", one_of_text("nf4", "fp4")),
        }
    ),
    "dist_config": nested(
        {
            "name": use("_dist", one_of_text("fsdp2", "fsdpturbo", "deepspeed")),
            "config_file": use("_deepspeed", text),
            "offload_params": not_modelled("parameters and states on the host", errs="high"),
            "ep_size": not_modelled("experts split across GPUs", (1,), errs="high"),
            "reshard_after_forward": not_modelled(
                "layers stay gathered between forward and backward", (True,)
            ),
            **ignored(
                "how weights arrive or are wrapped",
                "dcp_path pin_memory *_plan_fn modules_to_* mp_* fsdp_* ep_*",
            ),
        }
    ),
    "kernel_config": nested(
        {
            "name": use("_kernel", text),
            "include_kernels": use("_kernel", text),
            "*": Rule("ignored", why="a detail of a kernel, reported by its name"),
        }
    ),
    "optim_config": nested(
        {
            "name": not_modelled("an optimizer of its own: AdamW's states are assumed, more than Muon keeps"),
            "*": Rule("ignored", why="the optimizer's numbers, not its states"),
        }
    ),
    "init_config": nested({"*": Rule("ignored", why="how weights arrive")}),
    "cp_size": not_modelled("sequences split across GPUs", (1,), errs="high"),
    "mp_replicate_size": not_modelled("replicas beside shards", (1,)),
    "full_determinism": DETERMINISTIC,
    "cp_mode": Rule("ignored", why="reported by cp_size"),
    **ignored("data and templates", "train_dataset eval_dataset custom_chat_template batching_workers"),
    **ignored("sampling and generation", "sample_backend max_new_tokens"),
    **ignored(
        "schedules, files, logging and randomness",
        """
        learning_rate num_train_epochs max_steps max_grad_norm lr_scheduler_config seed resume_from_checkpoint
        save_* logging_* output_dir dist_timeout dp_size mp_shard_size trust_remote_code
    """,
    ),
    **ignored("numbers of a preference loss", "pref_* simpo_gamma dpo_label_smoothing ld_alpha"),
}


def finish(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    """Setup fields under recipe raw: torch's AdamW, non-reentrant checkpointing (core/base_trainer.py), no
    autocast.

    Full fine-tuning loads float32 weights (core/model_engine.py); a quantized base computes and is stored in
    float16 (plugins/model_plugins/quantization.py compute_dtype); rank 8 of all linear layers
    (plugins/model_plugins/peft.py).
    """
    facts.setdefault("micro_batch", 1)
    facts.setdefault("sequence_length", 2048)
    facts["checkpointing"] = "non_reentrant" if facts.get("_checkpointing", True) else "none"
    facts |= {"optimizer": "adamw_torch", "autocast": "none"}
    settle_attention(facts, warnings)
    _settle_method(facts)
    if facts.get("_dist") in ("fsdp2", "fsdpturbo"):
        facts["parallel"] = "fsdp"
    if facts.get("_batching", "normal") != "normal":
        packed_rows(facts, warnings)
    if facts.get("_kernel", "auto") != "auto":
        warnings.append(
            "v1 kernels are not modeled: they save fewer tensors, so the prediction errs on the high side"
        )
    return {**setup_fields(facts), "recipe": "raw"}


def _settle_method(facts: Facts) -> None:
    peft, bits = facts.get("_peft"), facts.get("_bit", 4 if "_quantizer" in facts else None)
    if bits not in (None, 4, 8):
        raise UsageError(f"quant_config.quantization_bit is {bits}: expected 4 or 8")
    if peft == "freeze":
        facts["method"] = "freeze"
        facts.setdefault("trainable_layers", 2)
        facts["trainable_dtype"] = "float32" if facts.get("_cast", True) else "weight"
        return
    facts["method"] = adapter_method(facts, peft == "lora", bits == 4)
    if peft is None:
        facts["weight_dtype"] = "float32"
        return
    facts.setdefault("rank", 8)
    facts.setdefault("alpha", 16)
    facts.setdefault("dropout", 0.05)
    facts["targets"] = ("all-linear",) if facts.get("targets", ("all",)) == ("all",) else facts["targets"]
    if bits == 8:
        facts["quant_type"] = "int8"
    if bits == 4:
        facts.setdefault("double_quant", True)
        facts.setdefault("quant_storage", "float16")
        facts |= {"compute_dtype": facts["quant_storage"], "kbit_prepare": False}
