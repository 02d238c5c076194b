"""axolotl's YAML (0.21): the schemas under utils/schemas, read as one table."""

from __future__ import annotations

from typing import Any, Literal

from memplan.planner.importers import axolotl_rl, patterns
from memplan.planner.importers.changed import OVERRIDES, new_tokens, overrides, special_tokens
from memplan.planner.importers.choices import optimizer
from memplan.planner.importers.fsdp import FSDP
from memplan.planner.importers.hf import DETERMINISTIC, NOISE, keyword_arguments
from memplan.planner.importers.liger import WORDS
from memplan.planner.importers.low_rank import arguments, target_modules
from memplan.planner.importers.rules import (
    Rule,
    bad,
    flag,
    ignored,
    integer,
    names,
    nested,
    not_modelled,
    number,
    text,
    use,
    whole_numbers,
)
from memplan.planner.tables.errors import UsageError


def _precision(key: str, value: Any) -> str:
    """bf16 and fp16 are true, false, 'auto' or 'full'."""
    word = str(value).lower()
    if word not in ("true", "false", "auto", "full"):
        raise bad(key, value, "true, false, auto or full")
    return word


def _checkpointing(key: str, value: Any) -> str:
    word = str(value).lower()
    if word not in ("true", "false", "offload", "offload_disk", "unsloth"):
        raise bad(key, value, "true, false, offload or offload_disk")
    return word


def _offloading(key: str, value: Any) -> str:
    """True is "streams"; disk is another name for it, since nothing reads it (axolotl 0.19
    core/trainers/mixins/activation_checkpointing.py).
    """
    word = str(value).lower()
    if word not in ("true", "false", "legacy", "disk", "hidden_states"):
        raise bad(key, value, "true, false, legacy, disk or hidden_states")
    return {"true": "streams", "disk": "streams"}.get(word, word)


def _adapter(key: str, value: Any) -> str:
    word = text(key, value).lower()
    if word not in ("lora", "qlora", "none"):
        raise UsageError(
            f"{key} '{word[:40]}' is not supported: pass its adapter_config.json with --adapter and "
            "--engine trace"
        )
    return word


def _size(key: str, value: Any) -> str:
    """A picture's size as `images` has it: a square's edge, or width and height."""
    edges = value if isinstance(value, (list, tuple)) else [value]
    if len(edges) not in (1, 2):
        raise bad(key, value, "an edge, or width and height")
    whole = [integer(key, each) for each in edges]
    return f"1@{whole[0]}x{whole[-1]}"


LEGACY_ATTENTION = {
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
    "xformers_attention": "xformers",
    "flex_attention": "flex_attention",
    "sage_attention": "sage",
}

Side = Literal["", "high", "low"]
OTHERS: tuple[tuple[str, str, Side], ...] = (
    ("ebft", "another trainer or more models", "low"),
    ("diffusion_lm diffusion trainer_cls hatchery", "another trainer, with its own loss", ""),
    (
        "use_scattermoe use_sonicmoe use_dsv4_kernels use_glm_dsa_kernels dsv4_fp4_grouped_mode",
        "a kernel of its own",
        "",
    ),
    ("expert_parallel_size", "experts split across GPUs", "high"),
    # kernels/gemma4_fused_rope.py: of norm and rotary embedding its input is saved, and a number for each head
    ("fused_attn_kernel", "norm and rotary embedding of queries and keys as one kernel", "high"),
    # loaders/patch_manager.py _apply_gemma_hybrid_attention: heads of 512 by sdpa, as all are counted
    ("gemma4_hybrid_attn_impl", "flash-attention in the layers whose window slides", "high"),
    ("large_head_attention", "an attention of axolotl's own", ""),
    ("quantization use_onebitllms", "a quantization other than bitsandbytes'", ""),
    (
        "peft",
        "LoftQ: fp32 copies and singular values of a weight, layer by layer, as adapters are made",
        "low",
    ),
    ("shrink_embeddings overrides_of_model_kwargs", "a changed model", ""),
    ("llmcompressor", "a sparse model", ""),
    ("max_memory gpu_memory_limit", "layers on the CPU or on other GPUs", "high"),
    ("flash_attn_fuse_mlp", "xformers' SwiGLU, which keeps its two inputs alone", "high"),
    ("flash_attn_*", "a fused kernel of flash-attention's own", ""),
    ("use_kernels", "kernels of a hub in the place of the model's", ""),
    ("s2_attention", "shifted sparse attention", ""),
    ("use_eaft", "two more copies of the logits of tokens that have a label, in fp32", "low"),
    ("use_dft scaling_softmax*", "a loss or an attention of axolotl's own", ""),
    ("lora_model_dir", "the rank and targets of an existing adapter", ""),
    ("lisa_n_layers", "layers that take turns to train", "high"),
    ("auto_find_batch_size", "a batch that the file does not state", ""),
)
"""Keys that move memory in ways that no Setup field follows, by reason."""

RULES: dict[str, Rule] = {
    "base_model": use("_model", text),
    "base_model_config": Rule("ignored", why="the model's own configuration is read"),
    "adapter": use("_adapter", _adapter),
    "load_in_4bit": use("_four_bit", flag),
    "load_in_8bit": use("_eight_bit", flag),
    "bnb_config_kwargs": use("_bnb", keyword_arguments),
    "lora_r": use("rank", integer),
    "lora_alpha": use("alpha", number),
    "lora_dropout": use("dropout", number),
    "lora_target_modules": use("_targets", patterns.targets),
    "lora_target_linear": use("_linear", flag),
    "lora_modules_to_save": use("modules_to_save", names),
    "peft_use_dora": use("_dora", flag),
    "peft_use_rslora": use("_rslora", flag),
    "peft_autocast_adapter_dtype": use("_upcast_adapters", flag),
    "lora_fp32_gradients": use("_fp32_gradients", flag, "adapters in float32"),
    "micro_batch_size": use("micro_batch", integer),
    "gradient_accumulation_steps": use("gradient_accumulation", integer),
    "sequence_len": use("sequence_length", integer),
    "sample_packing": use("_packing", flag),
    "pad_to_sequence_len": use("_pad", flag),
    "group_by_length": use("group_by_length", flag, "read with --lengths"),
    "bf16": use("_bf16", _precision),
    "fp16": use("_fp16", _precision),
    "bfloat16": use("_bfloat16", flag),
    "float16": use("_float16", flag),
    "float32": use("_float32", flag),
    "gradient_checkpointing": use("_gc", _checkpointing),
    "gradient_checkpointing_kwargs": use("_checkpointing_kwargs", keyword_arguments),
    "optimizer": use("optimizer", optimizer),
    "attn_implementation": use("attention", text),
    **{name: use(f"_{name}", flag) for name in LEGACY_ATTENTION},
    "embeddings_skip_upcast": use("_skip_upcast", flag),
    "liger_fused_linear_cross_entropy": use("_fused_loss", flag),
    "cut_cross_entropy": use("_cut_loss", flag),
    "chunked_cross_entropy": use("_chunked_loss", flag),
    "fsdp_config": nested(FSDP),
    "fsdp": use("_fsdp", lambda key, value: value),
    "fsdp_version": use("_fsdp_version", integer),
    "deepspeed": use("_deepspeed"),
    "dp_shard_size": use("_shards", integer),
    "reward_model": use("_reward", flag, "a pooled head, chosen and rejected rows"),
    "process_reward_model": use("_steps", flag, "a head for every token"),
    "num_labels": use("_labels", integer, "of such a head"),
    "rl": use("_rl", text),
    "rl_beta": use("_rl_beta", number, "a number of the loss, GRPO's reference model"),
    **axolotl_rl.RULES,
    "precompute_ref_log_probs": use("_precomputed", flag, "no reference model while training"),
    "rl_adapter_ref_model": use("_reference", flag, "a second model beside an adapter"),
    "dpo_use_weighting": not_modelled("log-sums of whole logits, twice", errs="low"),
    "dpo_padding_free": not_modelled("pairs as one long row"),
    "dpo_use_liger_kernel": not_modelled("a loss without logits", errs="high"),
    "plugins": use(
        "_plugins", lambda key, value: tuple(map(str, value)) if isinstance(value, list) else (str(value),)
    ),
    "quantize_moe_experts": use("_quantize_experts", flag),
    "lora_target_parameters": use("target_parameters", names),
    "lora_rank_pattern": not_modelled("ranks that differ by module"),
    "peft_layers_to_transform": use("layers_to_transform", whole_numbers),
    "peft_layer_replication": not_modelled("repeated layers", errs="low"),
    "peft_trainable_token_indices": not_modelled("trainable rows of the embedding", errs="low"),
    "nf4_backend": not_modelled("torchao's NF4", ("bitsandbytes",)),
    "activation_offloading": use("_offload", _offloading, "saved tensors go to the host"),
    "model_quantization_config": use("_quantizer", text, "how the checkpoint is read"),
    "model_quantization_config_kwargs": use("_quantizer_kwargs", keyword_arguments),
    "tokens": use("_tokens", new_tokens, "rows of the vocabulary"),
    "special_tokens": use("_special_tokens", special_tokens, "rows of the vocabulary beside `tokens`"),
    "resize_token_embeddings_to_32x": use("_rows_32x", flag, "rows of the vocabulary"),
    **{name: use("_config", overrides, "fields of the model's configuration") for name in OVERRIDES},
    "llama4_linearized_experts": use("_linear_experts", flag, "a Linear per expert"),
    "layer_offloading": not_modelled("frozen weights on the host", errs="high"),
    "selective_checkpointing": not_modelled(
        "attention outputs kept, about one hidden state more per layer", errs="low"
    ),
    "tiled_mlp": not_modelled("the MLP in tiles", errs="high"),
    "unfrozen_parameters": use("trained_parameters", names),
    "ple_cpu_offload": not_modelled("tables on the host", errs="high"),
    "lora_on_cpu": not_modelled("adapters on the host", errs="high"),
    "reinit_weights": not_modelled("a model of random weights, made another way"),
    "fix_untrained_tokens": not_modelled("embeddings and head train too", errs="low"),
    "relora": not_modelled("restarts, which merge adapters into the base between two steps", errs="low"),
    "torch_compile": not_modelled(
        "a compiled step frees and fuses tensors differently", ("auto",), errs="high"
    ),
    "fp8": not_modelled("8-bit products keep scaled copies"),
    "qat": not_modelled("fake quantization, which saves copies of every weight and input", errs="low"),
    "tensor_parallel_size": not_modelled("weights split across GPUs", (1,), errs="high"),
    "context_parallel_size": not_modelled("sequences split across GPUs", (1,), errs="high"),
    "sequence_parallel_degree": not_modelled("sequences split across GPUs", (1,), errs="high"),
    "dp_replicate_size": use("replicas", integer, "copies of what dp_shard_size ranks share"),
    "experts_implementation": not_modelled("how experts are held and computed", ("grouped_mm",)),
    "optim_args": use("_optim_args", arguments),
    "optim_target_modules": use("optim_targets", target_modules),
    "sdpa_varlen": not_modelled("packed rows without a mask", errs="high"),
    "batch_flattening": not_modelled("a batch as one row"),
    "neftune_noise_alpha": NOISE,
    "noisy_embedding_alpha": NOISE,
    "full_determinism": DETERMINISTIC,
    "trust_remote_code": use("_remote_code", flag, "no code of a repository is run; adapter kernels are off"),
    "batch_size": use("_batch_size", integer, "over micro_batch_size: the accumulation"),
    "fp32_norms": use("_fp32_norms", flag),
    "processor_type": use("_processor", text, "pictures of the size that is said with the answer"),
    "image_size": use("_image_size", _size, "each picture made so large"),
    "freeze_mm_modules": use("_frozen_parts", flag, "nothing of the tower and the projector trains"),
    **{
        f"lora_{name}_kernel": use(f"_lora_{name}", flag, "adapters as one function")
        for name in ("mlp", "qkv", "o", "embedding")
    },
    **{
        f"liger_{name}": use(f"_{kernel}", flag, "one of Liger's kernels")
        for name, kernel in {**WORDS, "glu_activation": "glu"}.items()
        if name != "geglu"
    },
    **{
        f"liger_{name}": not_modelled("a kernel that saves fewer tensors", errs="high")
        for name in ("rms_norm_gated", "use_token_scaling")
    },
    **ignored(
        "the optimizer's numbers, not its states",
        """
        learning_rate lr_* cosine_* adam_* weight_decay max_grad_norm num_epochs max_steps warmup_* loraplus_*
        embedding_lr embedding_lr_scale dion_* qgalore_* relora_* jagged_* torchdistx_path
    """,
    ),
    **ignored(
        "names data, templates or tokens",
        """
        datasets test_datasets dataset_* pretraining_dataset shuffle_* skip_prepare_dataset num_dataset_shards_to_save val_size
        val_set_size chat_template chat_template_* default_system_message added_tokens_overrides
        eot_tokens train_on_inputs streaming* curriculum_sampling push_dataset_to_hub hf_use_auth_token
        excess_length_strategy min_sample_len max_prompt_len balance_labels label_balance_* sample_packing_*
        multipack_real_batches use_pose pose_* pretrain_* pretraining_sample_concatenation preprocess_iterable
        total_num_tokens total_supervised_tokens
    """,
    ),
    **ignored(
        "evaluation, saving and logging are outside the training step",
        """
        eval_* evals_per_epoch save_* saves_per_epoch logging_* output_dir wandb_* use_wandb mlflow_* use_mlflow comet_*
        use_comet hub_* use_tensorboard use_otel_metrics otel_* trackio_* use_trackio swanlab_* use_swanlab
        early_stopping_patience load_best_model_at_end metric_for_best_model greater_is_better do_causal_lm_eval
        eval_causal_lm_metrics do_bench_eval bench_* loss_watchdog_* include_tokens_per_second include_tkps profiler_*
        sync_profiler_* generate_samples num_generation_samples generation_* auto_resume_from_checkpoints resume_from_checkpoint
        gradio_* save_safetensors
    """,
    ),
    **ignored(
        "the tokenizer, or where the model comes from",
        """
        tokenizer_* model_type type_of_model revision_of_model is_*_derived_model processor_kwargs strict
        experimental_skip_move_to_device cls_model_config
    """,
    ),
    **ignored(
        "how data reaches the host, and randomness",
        """
        dataloader_* remove_unused_columns seed accelerator_config axolotl_config_path is_preprocess
        sample_packing_eff_est device_map device world_size local_rank low_cpu_mem_usage qlora_sharded_model_loading
    """,
    ),
    **ignored("when ranks synchronise", "ddp ddp_* fsdp_final_state_dict_type deepcompile"),
    **ignored(
        "the cache between steps, not a step's peak", "gc_steps torch_empty_cache_steps gc_collect_steps"
    ),
    **ignored(
        "precision of products, or a detail of a switch reported by itself",
        """
        tf32 torch_compile_* flash_optimum chunked_cross_entropy_num_chunks cut_cross_entropy_* tiled_mlp_* fp8_*
        fp32_norm_classes pad_to_multiple_of lora_fan_in_fan_out mean_resizing_embeddings
        fa_varlen_kwargs_in_collator heads_k_stride ring_attn_func peft_init_lora_weights peft_layers_pattern
        lora_alpha_pattern peft_ensure_weight_tying
    """,
    ),
    **ignored(
        "how a picture is resized, not to which size; which tokens are trained on",
        "image_resize_algorithm role_boundaries",
    ),
    **{name: not_modelled(why, errs=errs) for names_, why, errs in OTHERS for name in names_.split()},
    **ignored(
        "numbers of a loss, or details of a switch reported by itself",
        """
        orpo_alpha cpo_alpha simpo_gamma kto_* dpo_* rpo_alpha center_rewards_coefficient eaft_*
        flex_attn_compile_kwargs evaluation_strategy hf_mlflow_log_artifacts
        nvfp4_merge_aware merge_lora merge_method export rope_scaling lisa_step_interval lisa_layers_attribute
    """,
    ),
    **ignored("where it runs", "use_ray ray_* resources_per_worker cloud dynamic_checkpoint"),
    **ignored("the environment of reinforcement learning, reported by rl", "nemo_gym_*"),
    **ignored(
        "details of a switch reported by itself", "expert_parallel_* eta_min debug base_model_ignore_patterns"
    ),
    **ignored(
        "a setting that axolotl replaces or no longer reads",
        "torch_dtype gptq_groupsize gptq_model_v1 gptq_disable_exllama",
    ),
    # 0.19 utils/schemas/deprecated.py; earlier releases cut rows at max_packed_sequence_len, none above sequence_len
    **ignored("a setting that axolotl refuses since", "max_packed_sequence_len flash_attn_rms_norm"),
    # 0.19 loaders/model.py _set_quantization_config
    **ignored("the checkpoint's own quantization_config is read", "gptq"),
}
