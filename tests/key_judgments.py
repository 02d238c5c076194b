"""Ignored keys that `benchmarks/perturbed_keys.json` neither has a run of nor a source for: by stack (and the
source that has them) and by the reason of its table, which is all that they rest on. A key that joins
a table is run there, or joins a list here.
"""

JUDGED: dict[str, dict[str, str]] = {
    "torchtune": {  # torchtune 0.6.1 recipes/
        "where the tokenizer or the pictures come from, or a number": "model.*_trainable model.image_size",
        "where the weights come from": "base_model_path",
        "names data": "datasets",
        "how data reaches the host": "dataloader",
        "numbers of reinforcement learning, reported by its models": """
            debug_* forward_batch_size inference name num_steps postprocessing ppo_batch_size
            reward_functions save_every_n_epochs training
        """,
    },
    "accelerate": {  # accelerate 1.15 commands/config/config_args.py, utils/dataclasses.py
        "which class is a decoder layer, or how the model is loaded or saved": """
            fsdp_config.*transformer_layer_cls_to_wrap
        """,
        "saving, launching or clipping": "deepspeed_config.seq_parallel_communication_data_type",
        "where ranks run and how they meet": "zero_stage_note",
    },
    "axolotl": {  # axolotl 0.19 utils/schemas/, core/builders/base.py, loaders/
        "which class is a decoder layer, or how the model is loaded or saved": """
            fsdp_config.*transformer_layer_cls_to_wrap
        """,
        "numbers of the loss and of rewards, a few for each token": """
            trl.delta trl.entropy_coef trl.entropy_coef_* trl.entropy_target trl.epsilon
            trl.epsilon_high trl.importance_sampling_level trl.loss_type
            trl.mask_truncated_completions trl.multi_objective_aggregation trl.num_iterations
            trl.off_policy_mask_threshold trl.ref_model_mixup_alpha trl.ref_model_sync_steps
            trl.reward_weights trl.sapo_* trl.scale_rewards trl.temperature trl.use_adaptive_entropy
            trl.use_bias_correction_kl trl.vespo_* trl.vllm_importance_sampling_*
        """,
        "what is generated with, not how much": """
            trl.chat_template_kwargs trl.ds3_gather_for_generation trl.log_completions
            trl.log_multimodal trl.log_unique_prompts trl.max_tool_calling_iterations
            trl.num_completions_to_print trl.num_generations_eval trl.vllm_group_port
            trl.vllm_guided_decoding_regex trl.vllm_max_model_length trl.vllm_model_impl
            trl.vllm_server_* trl.vllm_structured_outputs_regex
        """,
        "details of something that is reported where it is on, or numbers of rewards": """
            trl.entropy_* trl.generation_kwargs trl.prefetch_depth trl.ref_model_*
            trl.replay_recompute_logps trl.reroll_* trl.reward_num_workers
            trl.reward_processing_classes trl.skip_zero_advantage_batches trl.streaming_* trl.vllm_*
            trl.vllm_lora_sync trl.vllm_sync_interval
        """,
        "how vLLM serves, within its share": "vllm.*",
        "names data, templates or tokens": "balance_labels label_balance_* val_size",
        "evaluation, saving and logging are outside the training step": "sync_profiler_*",
        "the tokenizer, or where the model comes from": "model_type",
        "precision of products, or a detail of a switch reported by itself": """
            cut_cross_entropy_* fa_varlen_kwargs_in_collator
        """,
        "numbers of a loss, or details of a switch reported by itself": "export nvfp4_merge_aware",
        "where it runs": "cloud",
        "the environment of reinforcement learning, reported by rl": "nemo_gym_*",
        "details of a switch reported by itself": """
            base_model_ignore_patterns debug eta_min expert_parallel_*
        """,
        "a setting that axolotl replaces or no longer reads": """
            gptq_disable_exllama gptq_groupsize gptq_model_v1 torch_dtype
        """,
        "a setting that axolotl refuses since": "flash_attn_rms_norm max_packed_sequence_len",
        "the checkpoint's own quantization_config is read": "gptq",
    },
    "llamafactory": {  # llamafactory 0.9.5 hparams/
        "Megatron's own switches, reported by use_mca": """
            apply_rope_fusion bias_activation_fusion mixed_precision moe_grouped_gemm
            moe_token_dispatcher_type overlap_grad_reduce overlap_param_gather recompute_granularity
            use_packed_sequences
        """,
        "how the model is wrapped": "fsdp_transformer_layer_cls_to_wrap",
    },
    "llamafactory-v1": {  # llamafactory v1 config/
        "export": "peft_config.export_* peft_config.infer_dtype",
        "how weights arrive or are wrapped": """
            dist_config.*_plan_fn dist_config.dcp_path dist_config.ep_* dist_config.fsdp_*
            dist_config.modules_to_* dist_config.mp_* dist_config.pin_memory
        """,
        "a detail of a kernel, reported by its name": "kernel_config.*",
        "the optimizer's numbers, not its states": "optim_config.*",
        "how weights arrive": "init_config.*",
        "reported by cp_size": "cp_mode",
        "data and templates": "custom_chat_template",
        "schedules, files, logging and randomness": """
            dist_timeout dp_size lr_scheduler_config mp_shard_size
        """,
        "numbers of a preference loss": "dpo_label_smoothing ld_alpha pref_* simpo_gamma",
    },
    "trl": {  # trl 1.16 trainer/sft_config.py, transformers 5.23 training_args.py
        "numbers and lengths of a preference loss, reported by beta": """
            max_completion_length max_prompt_length num_generations
        """,
        "names data or a template, or which tokens count in the loss": """
            chat_template datasets streaming test_split_size
        """,
        "which revision, or which class for the adapter": "config",
    },
}
