"""LLaMA-Factory's YAML (0.9.5, v0 arguments): model, data, training and fine-tuning arguments in one flat
table.
"""

from __future__ import annotations

from typing import Any

from memplan.planner.importers.hf import GENERATES, TRAINING, packed_rows, settle
from memplan.planner.importers.low_rank import LLAMAFACTORY, settle_llamafactory
from memplan.planner.importers.resized import NEW_ROWS
from memplan.planner.importers.rules import (
    PICTURES,
    TOWER,
    Facts,
    Rule,
    flag,
    frozen,
    ignored,
    integer,
    names,
    not_modelled,
    number,
    one_of_text,
    setup_fields,
    text,
    use,
)
from memplan.planner.importers.trl import adapter_method
from memplan.planner.tables.errors import UsageError

ATTENTION = {
    "auto": "sdpa",
    "sdpa": "sdpa",
    "disabled": "eager",
    "fa2": "flash_attention_2",
    "fa3": "flash_attention_3",
}

NEW_TOKENS = ("add_tokens", "add_special_tokens")
VALUES = {
    "rm": "a rejected row for each, whole logits that no loss reads and every layer's hidden states beside its "
    "value head",
    "ppo": "a value head, a reward model, and samples with their scores",
}
"""Stages whose trainers are LLaMA-Factory's own and that no task follows, and what of them is not counted (0.9.5
train/rm/trainer.py compute_loss, train/ppo/trainer.py)."""
RESIZED = ("embed_tokens", "lm_head")
"""What resize_vocab adds to what an adapter trains (0.9.5 model/adapter.py _setup_lora_tuning): embeddings and
head, by the names that nearly every decoder has for them. They grow only where the tokenizer has more entries
than the embedding (model/model_utils/embedding.py resize_embedding_layer), which new tokens alone make."""

QUANTIZERS = ("bnb", "bitsandbytes", "hqq", "eetq", "gptq", "awq", "aqlm", "quanto", "mxfp4", "fp8")


def _attention(key: str, value: Any) -> str:
    return ATTENTION[one_of_text(*ATTENTION)(key, value)]


def _bits(key: str, value: Any) -> int:
    return integer(key, value)


RULES: dict[str, Rule] = {
    **TRAINING,
    "model_name_or_path": use("_model", text),
    "finetuning_type": use("_type", one_of_text("lora", "full", "freeze", "oft")),
    "pref_loss": use("_preference", one_of_text("sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo")),
    "stage": use("_stage", one_of_text("sft", "pt", "rm", "ppo", "dpo", "kto")),
    "cutoff_len": use("_length", integer),
    "lora_rank": use("rank", integer),
    "lora_alpha": use("alpha", number),
    "lora_dropout": use("dropout", number),
    "lora_target": use("_target", names),
    "additional_target": use("modules_to_save", names),
    "use_dora": use("_dora", flag),
    "use_rslora": use("_rslora", flag),
    "pure_bf16": use("_pure", flag, "trainable parameters stay in bfloat16"),
    "quantization_bit": use("_bit", _bits),
    "quantization_type": use("quant_type", one_of_text("nf4", "fp4")),
    "double_quantization": use("double_quant", flag),
    "quantization_method": use("_quantizer", one_of_text(*QUANTIZERS)),
    "flash_attn": use("attention", _attention),
    "disable_gradient_checkpointing": use("_no_checkpointing", flag),
    "use_reentrant_gc": use("_reentrant", flag),
    "use_unsloth_gc": use("_unsloth_gc", flag, "saved hidden states go to the host"),
    "enable_liger_kernel": use("_liger", flag, "Liger's loss and kernels"),
    "upcast_layernorm": use("_norms", flag),
    "freeze_trainable_layers": use("trainable_layers", integer),
    "packing": use("_packing", flag),
    "neat_packing": use("_neat", flag, "several documents in one row, with a block mask"),
    **{
        f"use_{name}": not_modelled(f"{name}'s optimizer states are smaller than AdamW's", errs="high")
        for name in ("badam", "adam_mini", "muon")
    },
    **LLAMAFACTORY,
    "use_unsloth": not_modelled("Unsloth's own kernels and offloading", errs="high"),
    "upcast_lmhead_output": not_modelled("a second, float32 copy of the logits", errs="low"),
    "shift_attn": not_modelled("shifted sparse attention"),
    "mixture_of_depths": not_modelled("a different model"),
    "use_llama_pro": not_modelled("expanded blocks are what trains"),
    "freeze_trainable_modules": not_modelled(
        "only some modules of the last layers train", ("all",), errs="high"
    ),
    "freeze_extra_modules": not_modelled("modules outside the layers train too", errs="low"),
    "resize_vocab": use("_resizes", flag, "with an adapter, embeddings and head are trained"),
    **{name: use(f"_{name}", names) for name in NEW_TOKENS},
    "new_special_tokens_config": use("_new_special_tokens_config", text),
    "use_asft_loss": use("_asft", flag, "a reference model, and whole logits of both"),
    **{
        name: not_modelled("a loss of its own, of the whole logits", errs="low")
        for name in ("use_dft_loss", "use_eaft_loss")
    },
    "ref_model": not_modelled("a reference model is resident too", errs="low"),
    "reward_model": not_modelled("a reward model is resident too", errs="low"),
    "adapter_name_or_path": not_modelled("the rank and targets of an existing adapter"),
    "pissa_init": not_modelled("an SVD while loading", errs="low"),
    "use_kt": not_modelled("experts on the CPU through KTransformers", errs="high"),
    "use_mca": not_modelled("Megatron's trainer"),
    "use_hyper_parallel": not_modelled("its own parallelism"),
    **{
        name: not_modelled("Megatron's parallelism", (1,), errs="high")
        for name in (
            "tensor_model_parallel_size",
            "pipeline_model_parallel_size",
            "expert_model_parallel_size",
            "context_parallel_size",
            "sequence_parallel",
            "use_distributed_optimizer",
        )
    },
    **ignored(
        "Megatron's own switches, reported by use_mca",
        """
        bias_activation_fusion apply_rope_fusion overlap_param_gather overlap_grad_reduce moe_grouped_gemm
        moe_token_dispatcher_type recompute_granularity mixed_precision use_packed_sequences
    """,
    ),
    "fsdp_transformer_layer_cls_to_wrap": Rule("ignored", why="how the model is wrapped"),
    "fp8": not_modelled("8-bit products keep scaled copies"),
    "train_from_scratch": Rule("ignored", why="random weights have the same size"),
    **ignored(
        "details of something that is off, or reported where it is on",
        """
        badam_* oft_* module_dropout fp8_* kt_* hyper_parallel_args ref_model_* reward_model_* pissa_iter
        pissa_convert
    """,
    ),
    **ignored(
        "numbers of the loss",
        """
        pref_* ppo_* dpo_label_smoothing kto_* simpo_gamma ld_alpha moe_aux_loss_coef asft_alpha
        eaft_alpha loraplus_*
    """,
    ),
    **ignored(
        "data and templates",
        """
        template dataset dataset_dir eval_dataset media_dir train_on_prompt mask_history streaming buffer_size mix_strategy
        interleave_probs overwrite_cache preprocessing_* max_samples eval_num_beams ignore_pad_token_for_loss val_size
        eval_on_each_dataset tool_format default_system enable_thinking preserve_thinking tokenized_path data_shared_file_system
        use_audio_in_video audio_sampling_rate crop_to_patches
    """,
    ),
    **ignored(
        "the tokenizer, or where files come from",
        """
        use_fast_tokenizer split_special_tokens init_special_tokens
        model_revision low_cpu_mem_usage cache_dir adapter_folder offload_folder trust_remote_code hf_hub_token ms_hub_token
        om_hub_token print_param_status rope_scaling device_map quantization_device_map
    """,
    ),
    **ignored(
        "export and inference",
        """
        export_* infer_* vllm_* sglang_* use_kv_cache use_v1_kernels do_sample temperature top_p top_k num_beams max_new_tokens
        repetition_penalty length_penalty skip_special_tokens generation_*
    """,
    ),
    "predict_with_generate": GENERATES,
    **ignored(
        "logging, plotting and profiling",
        """
        plot_loss compute_accuracy disable_shuffling early_stopping_steps use_swanlab swanlab_* ray_*
        include_effective_tokens_per_second enable_torch_profiler profiler_* profile_modules master_addr master_port
        create_new_adapter
    """,
    ),
    "freeze_language_model": not_modelled("a language model whose layers are not trained", errs="high"),
    "freeze_vision_tower": use("vision_tower", frozen),
    "freeze_multi_modal_projector": use("projector", frozen),
    "image_max_pixels": use("image_scaled_to", integer),
    "video_max_pixels": use("video_scaled_to", integer),
    "video_fps": use("video_fps", number),
    "video_maxlen": use("video_frames", integer),
    **{name: not_modelled(PICTURES, errs="low") for name in ("image_*", "video_*")},
    "max_length": Rule("ignored", why="generation only"),
}


def finish(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    """Setup fields of a run, LLaMA-Factory's own defaults where the file is silent: batch 8, 2,048 tokens,
    reentrant checkpointing.
    """
    if facts.get("_stage") == "dpo":  # train/dpo/trainer.py compute_preference_loss
        facts["task"] = "dpo_logits"
        if facts.get("_preference") in ("orpo", "simpo"):
            facts["reference"] = "none"
    elif facts.get("_stage") == "kto":
        facts["task"] = "kto_logits"
    elif facts.get("_stage", "sft") not in ("sft", "pt"):
        lack = VALUES[facts["_stage"]]
        facts["_lacks"] = {"stage": f"{facts['_stage']}: {lack}"}
        warnings.append(f"stage {facts['_stage']} is not modeled: {lack}")
    _settle_vocabulary(facts)
    lacks = {"freeze_vision_tower": TOWER} if facts.get("vision_tower") == "trained" else {}
    shown = {"image_scaled_to": "image_max_pixels", "video_scaled_to": "video_max_pixels"}
    shown |= {"video_frames": "video_maxlen", "video_fps": "video_fps"}
    lacks |= {key: PICTURES for name, key in shown.items() if name in facts}
    if PICTURES in lacks.values():
        facts["images"] = ("usual",)
    if facts.get("_asft") and facts.get("_type") == "full":
        facts["task"] = "asft"
    elif facts.get("_asft"):
        # 0.9.5 train/trainer_utils.py create_ref_model: none for adapters, which then fails
        lacks["use_asft_loss"] = "LLaMA-Factory makes a reference model for full fine-tuning alone"
    facts["_lacks"] = {**lacks, **facts.get("_lacks", {})}
    facts.setdefault("_checkpointing", not facts.get("_no_checkpointing", False))
    if facts.get("_no_checkpointing"):
        facts["_checkpointing"] = False
    settle_llamafactory(facts)
    settle(facts, warnings, checkpointing=True, reentrant=facts.get("_reentrant", True))
    if facts.get("_unsloth_gc") and facts["checkpointing"] != "none":
        facts["checkpoint_offload"] = True
    facts["sequence_length"] = facts.get("_length", 2048)
    if facts.get("_type") == "oft":
        raise UsageError(
            "finetuning_type oft is not supported: pass its adapter_config.json with --adapter and "
            "--engine trace"
        )
    _settle_method(facts, warnings)
    if facts.get("_packing"):
        facts["padded"] = False
    if facts.get("_neat"):
        packed_rows(facts, warnings)
    if facts.get("_norms"):
        facts["upcast_modules"] = "norms"
    if facts.get("task"):  # its losses take whole logits: Liger's is left out (model_utils/liger_kernel.py)
        facts.pop("loss", None)
    if facts.get("_pure"):
        facts["trainable_dtype"], facts["autocast"] = "weight", "none"
        if facts["method"] not in ("full", "freeze"):
            warnings.append("pure_bf16 leaves adapters as PEFT made them, float32")
    return {**setup_fields(facts), "recipe": "llamafactory"}


def _settle_vocabulary(facts: Facts) -> None:
    """New tokens are a resized vocabulary too (0.9.5 model/patcher.py patch_tokenizer); how many entries the
    tokenizer has then, a file does not say.
    """
    added = [name for name in (*NEW_TOKENS, "new_special_tokens_config") if facts.get(f"_{name}")]
    if added or facts.get("_resizes"):
        facts.setdefault("modules_to_save", RESIZED)
    facts["_lacks"] = dict.fromkeys(added, NEW_ROWS) | facts.get("_lacks", {})


def _settle_method(facts: Facts, warnings: list[str]) -> None:
    kind, bit = facts.get("_type", "lora"), facts.get("_bit")
    if kind in ("full", "freeze"):
        facts["method"] = kind
        for name in ("rank", "alpha", "dropout", "modules_to_save", "_target"):
            facts.pop(name, None)
        if kind == "full":
            facts.pop("trainable_layers", None)
    else:
        facts["method"] = adapter_method(facts, True, bit == 4)
        facts.pop("trainable_layers", None)
        targets = facts.get("_target", ("all",))
        facts["targets"] = ("all-linear",) if targets == ("all",) else targets
        if "rank" in facts and "alpha" not in facts:
            facts["alpha"] = 2 * facts["rank"]
    if bit is None:
        for name in ("quant_type", "double_quant"):
            facts.pop(name, None)
        return
    if facts.get("_quantizer", "bnb") not in ("bnb", "bitsandbytes") or bit not in (4, 8):
        warnings.append(
            f"quantization_bit {bit} by {facts.get('_quantizer', 'bnb')} is not modeled: assuming "
            "bitsandbytes 4-bit"
        )
    if bit == 8:
        facts["quant_type"] = "int8"
        facts.pop("double_quant", None)
