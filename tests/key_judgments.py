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
        "which class is a decoder layer, how the model is loaded or saved, or FSDP1's own scheduling": """
            fsdp_config.*transformer_layer_cls_to_wrap
        """,
        "saving, launching or clipping": "deepspeed_config.seq_parallel_communication_data_type",
        "where ranks run and how they meet": "zero_stage_note",
    },
    "axolotl": {  # axolotl 0.19 utils/schemas/, core/builders/base.py, loaders/
        "which class is a decoder layer, how the model is loaded or saved, or FSDP1's own scheduling": """
            fsdp_config.*transformer_layer_cls_to_wrap
        """,
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
