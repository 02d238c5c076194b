"""Ignored keys that no trainer of the tests reads, by stack (and the source that has them) and by the reason
of its table. A key that joins a table joins a list here. They rest on that reason; which of axolotl's a loss,
an attention or a kernel reads was looked up in its source (0.19), and those are not ignored.
"""

JUDGED: dict[str, dict[str, str]] = {
    "peft": {  # peft 0.21 tuners/lora/config.py, tuners/adalora/config.py
        "how A and B start, or how the update is scaled": """
            alpha_pattern corda_config ensure_weight_tying eva_config fan_in_fan_out
            init_lora_weights loftq_config lora_ga_config megatron_core qalora_group_size
            runtime_config
        """,
        "when and how AdaLoRA prunes": "beta1 beta2 deltaT orth_reg_weight tfinal tinit total_step",
        "PEFT's own bookkeeping": """
            auto_mapping inference_mode layers_pattern peft_version revision task_type
        """,
    },
    "torchtune": {  # torchtune 0.6.1 recipes/
        "where the weights come from": "base_model_path",
        "names data": "datasets",
        "how data reaches the host": "dataloader",
        "numbers of reinforcement learning, reported by its models": """
            debug_* forward_batch_size gamma inference kl_coeff lmbda max_generated_tokens
            min_response_length name num_steps penalize_no_eos postprocessing ppo_batch_size
            ref_policy_checkpointer reward_checkpointer reward_functions reward_penalty
            save_every_n_epochs stop_token_ids temperature top_k training value_checkpointer
            whiten_rewards
        """,
        "generation only": "enable_kv_cache",
        "files, schedules, logging and randomness": """
            batch_size_val checkpointer clip_grad_norm collate_fn cudnn_deterministic_mode
            custom_sharded_layers dataset_val enable_async_checkpointing epochs
            fsdp_reshard_after_forward kd_loss kd_ratio keep_last_n_checkpoints log_* low_cpu_ram
            lr_scheduler max_steps_per_epoch metric_logger profiler quantizer run_val_every_n_steps
            save_adapter_weights_only shuffle teacher_checkpointer
        """,
        "where the tokenizer or the pictures come from, or a number": """
            *_trainable attn_dropout image_size max_seq_len norm_eps
        """,
        "the tokenizer": "_component_",
        "a part that the training step does not hold": "*",
    },
    "accelerate": {  # accelerate 1.15 commands/config/config_args.py, utils/dataclasses.py
        "TPU only": "downcast_bf16",
        "where ranks run and how they meet": """
            command_file commands compute_environment enable_cpu_affinity gpu_ids machine_rank
            main_process_* main_training_function mpirun_config num_machines rdzv_backend
            same_network tpu_* zero_stage_note
        """,
        "which class is a decoder layer, or how the model is loaded or saved": """
            *cpu_offload_pin_memory *min_num_params *state_dict_type *sync_module_states
            *transformer_layer_cls_to_wrap
        """,
        "how weights arrive, not what stays": "zero3_init_flag",
        "saving, launching or clipping": """
            *_filter *_nvme_path *hostfile deepspeed_moe_layer_cls_names
            deepspeed_multinode_launcher gradient_clipping seq_parallel_communication_data_type
            zero3_save_16bit_model
        """,
        "how a compiled step is made": "dynamo_mode dynamo_use_*",
    },
    "deepspeed": {  # deepspeed 0.19 runtime/config.py, runtime/zero/config.py
        "the global batch, schedules, clipping, logging and profiling": """
            _comment aio amp autotuning checkpoint comms_config comms_logger communication_data_type
            compile csv_monitor cuda_visible_devices curriculum_learning data_efficiency data_types
            disable_allgather dump_state elasticity flops_profiler gradient_clipping
            gradient_predivide_factor hybrid_engine memory_breakdown monitor_config
            prescale_gradients scheduler seq_parallel_communication_data_type sparse_gradients
            steps_per_print tensorboard torch_autocast train_batch_size wall_clock_breakdown wandb
            zero_allow_untested_optimizer zero_force_ds_cpu_optimizer
        """,
        "how buckets are sent: parameters are gathered in place": """
            allgather_bucket_size allgather_partitions round_robin_gradients
        """,
        "saving, or how weights arrive": """
            cpu_offload* elastic_checkpoint gather_16bit_weights_on_model_save
            ignore_unused_parameters legacy_stage1 load_from_fp32_weights memory_efficient_linear
            mics_* stage3_allgather_sequential stage3_gather_16bit_weights_on_model_save
            stage3_gather_fp16_weights_on_model_save stage3_model_persistence_threshold
            stage3_module_granularity_threshold stage3_partition_stream_chunk_size zeropp_loco_param
        """,
        "the host's side": """
            buffer_count buffer_size fast_init max_in_cpu nvme_path pin_memory pipeline
            pipeline_read pipeline_write ratio
        """,
        "numbers of the loss scale": """
            auto_cast check_grad_overflow consecutive_hysteresis hysteresis initial_scale_power
            loss_scale loss_scale_window min_loss_scale
        """,
        "the optimizer's numbers": "legacy_fusion params",
    },
    "axolotl": {  # axolotl 0.19 utils/schemas/, core/builders/base.py, loaders/
        "the model's own configuration is read": "base_model_config",
        "the optimizer's numbers, not its states": """
            adam_* cosine_* dion_* embedding_lr embedding_lr_scale jagged_* loraplus_* lr_*
            num_epochs qgalore_* relora_* torchdistx_path warmup_*
        """,
        "names data, templates or tokens": """
            added_tokens_overrides balance_labels chat_template chat_template_* curriculum_sampling
            dataset_* datasets default_system_message eot_tokens excess_length_strategy
            fix_untrained_tokens hf_use_auth_token label_balance_* max_prompt_len min_sample_len
            multipack_real_batches num_dataset_shards_to_save pose_* preprocess_iterable pretrain_*
            pretraining_dataset pretraining_sample_concatenation push_dataset_to_hub
            sample_packing_* shuffle_* skip_prepare_dataset special_tokens streaming* test_datasets
            total_num_tokens total_supervised_tokens train_on_inputs use_pose val_set_size val_size
        """,
        "evaluation, saving and logging are outside the training step": """
            auto_resume_from_checkpoints bench_* comet_* do_bench_eval do_causal_lm_eval
            early_stopping_patience eval_* eval_causal_lm_metrics evals_per_epoch generate_samples
            generation_* gradio_* hub_* include_tkps include_tokens_per_second logging_*
            loss_watchdog_* mlflow_* num_generation_samples otel_* profiler_* save_*
            save_safetensors saves_per_epoch swanlab_* sync_profiler_* trackio_* use_comet
            use_mlflow use_otel_metrics use_swanlab use_tensorboard use_trackio use_wandb wandb_*
        """,
        "the tokenizer, or where the model comes from": """
            cls_model_config experimental_skip_move_to_device is_*_derived_model model_type
            processor_kwargs revision_of_model strict tokenizer_* type_of_model
        """,
        "how data reaches the host, and randomness": """
            axolotl_config_path dataloader_* device device_map is_preprocess low_cpu_mem_usage
            qlora_sharded_model_loading sample_packing_eff_est world_size
        """,
        "when ranks synchronise": "ddp ddp_* deepcompile fsdp_final_state_dict_type",
        "the cache between steps, not a step's peak": "gc_collect_steps gc_steps",
        "precision of products, or a detail of a switch reported by itself": """
            chunked_cross_entropy_num_chunks cut_cross_entropy_* fa_varlen_kwargs_in_collator
            flash_optimum fp32_norm_classes fp8_* heads_k_stride lora_alpha_pattern
            lora_fan_in_fan_out mean_resizing_embeddings pad_to_multiple_of peft_ensure_weight_tying
            peft_init_lora_weights peft_layers_pattern ring_attn_func rl_beta tiled_mlp_*
            torch_compile_*
        """,
        "how a picture is resized, not to which size; which tokens are trained on": """
            image_resize_algorithm role_boundaries
        """,
        "numbers of a loss, or details of a switch reported by itself": """
            center_rewards_coefficient cpo_alpha dpo_* eaft_* evaluation_strategy export
            flex_attn_compile_kwargs hf_mlflow_log_artifacts kto_* lisa_layers_attribute
            lisa_step_interval merge_lora merge_method model_quantization_config_kwargs num_labels
            nvfp4_merge_aware orpo_alpha reinit_weights rope_scaling rpo_alpha simpo_gamma
        """,
        "where it runs": "cloud dynamic_checkpoint ray_* resources_per_worker use_ray",
        "the environment of reinforcement learning, reported by rl": "nemo_gym_*",
        "details of a switch reported by itself": """
            base_model_ignore_patterns eta_min expert_parallel_*
        """,
        "a setting that axolotl replaces or no longer reads": """
            gptq_disable_exllama gptq_groupsize gptq_model_v1 torch_dtype
        """,
        "which class is a decoder layer, or how the model is loaded or saved": """
            *cpu_offload_pin_memory *min_num_params *state_dict_type *sync_module_states
            *transformer_layer_cls_to_wrap
        """,
    },
    "llamafactory": {  # llamafactory 0.9.5 hparams/
        "the optimizer's numbers, not its states": "warmup_ratio",
        "when it is evaluated, and saving and logging, are outside these steps": """
            eval_* hub_* include_inputs_for_metrics include_tokens_per_second jit_mode_eval log_*
            logging_* overwrite_output_dir past_index save_* trackio_*
        """,
        "how data reaches the host": "dataloader_*",
        "precision of products, not of tensors": "half_precision_backend",
        "transformers' own bookkeeping": """
            _n_gpu deepspeed_plugin distributed_state mp_parameters n_gpu no_cuda push_to_hub_*
            tpu_* transformers_version
        """,
        "Megatron's own switches, reported by use_mca": """
            apply_rope_fusion bias_activation_fusion mixed_precision moe_grouped_gemm
            moe_token_dispatcher_type overlap_grad_reduce overlap_param_gather recompute_granularity
            use_packed_sequences
        """,
        "how the model is wrapped": "fsdp_transformer_layer_cls_to_wrap",
        "random weights have the same size": "train_from_scratch",
        "details of something that is off, or reported where it is on": """
            badam_* fp8_* hyper_parallel_args kt_* module_dropout oft_*
            pissa_convert pissa_iter ref_model_* reward_model_*
        """,
        "numbers of a projection": "apollo_* galore_*",
        "numbers of the loss": """
            asft_alpha dpo_label_smoothing eaft_alpha kto_* ld_alpha loraplus_* moe_aux_loss_coef
            ppo_* pref_* simpo_gamma
        """,
        "data and templates": """
            audio_sampling_rate buffer_size crop_to_patches data_shared_file_system dataset
            dataset_dir default_system enable_thinking eval_dataset eval_num_beams
            eval_on_each_dataset ignore_pad_token_for_loss interleave_probs mask_history max_samples
            media_dir mix_strategy overwrite_cache preprocessing_* preserve_thinking streaming
            template tokenized_path tool_format train_on_prompt use_audio_in_video val_size
        """,
        "the tokenizer, or where files come from": """
            adapter_folder add_special_tokens add_tokens cache_dir device_map hf_hub_token
            init_special_tokens low_cpu_mem_usage ms_hub_token new_special_tokens_config
            offload_folder om_hub_token print_param_status quantization_device_map rope_scaling
            split_special_tokens use_fast_tokenizer
        """,
        "export and inference": """
            do_sample export_* generation_* infer_* length_penalty max_new_tokens num_beams
            repetition_penalty sglang_* skip_special_tokens temperature top_k top_p use_kv_cache
            use_v1_kernels vllm_*
        """,
        "logging, plotting and profiling": """
            compute_accuracy create_new_adapter disable_shuffling early_stopping_steps
            enable_torch_profiler include_effective_tokens_per_second master_addr master_port
            plot_loss profile_modules profiler_* ray_* swanlab_* use_swanlab
        """,
        "generation only": "max_length",
    },
    "llamafactory-v1": {  # llamafactory v1 config/
        "reported by cp_size": "cp_mode",
        "data and templates": """
            batching_workers custom_chat_template eval_dataset model_class train_dataset
        """,
        "sampling and generation": "max_new_tokens sample_backend",
        "schedules, files, logging and randomness": """
            dist_timeout dp_size logging_* lr_scheduler_config mp_shard_size save_*
        """,
        "numbers of a preference loss": "dpo_label_smoothing ld_alpha pref_* simpo_gamma",
        "export": "export_* infer_dtype",
        "how weights arrive or are wrapped": """
            *_plan_fn dcp_path ep_* fsdp_* modules_to_* mp_* pin_memory
        """,
        "a detail of a kernel, reported by its name": "*",
        "the optimizer's numbers, not its states": "*",
        "how weights arrive": "*",
    },
    "trl": {  # trl 1.16 trainer/sft_config.py, transformers 5.23 training_args.py
        "the optimizer's numbers, not its states": "warmup_ratio",
        "when it is evaluated, and saving and logging, are outside these steps": """
            eval_* hub_* include_inputs_for_metrics include_tokens_per_second jit_mode_eval log_*
            logging_* overwrite_output_dir past_index save_* trackio_*
        """,
        "how data reaches the host": "dataloader_*",
        "precision of products, not of tensors": "half_precision_backend",
        "transformers' own bookkeeping": """
            _n_gpu deepspeed_plugin distributed_state mp_parameters n_gpu no_cuda push_to_hub_*
            tpu_* transformers_version
        """,
        "numbers and lengths of a preference loss, reported by beta": """
            max_completion_length max_prompt_length num_generations
        """,
        "names data or a template, or which tokens count in the loss": """
            chat_template dataset_* datasets streaming test_split_size
        """,
        "which revision, or which class for the adapter": "config env",
    },
    "swift": {  # ms-swift 4.6 arguments/, transformers 5.23 training_args.py
        "the optimizer's numbers, not its states": "warmup_ratio",
        "details of something that is reported where it is on": "galore_*",
        "when it is evaluated, and saving and logging, are outside these steps": """
            eval_* hub_* include_inputs_for_metrics include_tokens_per_second jit_mode_eval log_*
            logging_* overwrite_output_dir past_index save_* trackio_*
        """,
        "how data reaches the host": "dataloader_*",
        "precision of products, not of tensors": "half_precision_backend",
        "transformers' own bookkeeping": """
            _n_gpu deepspeed_plugin distributed_state mp_parameters n_gpu no_cuda push_to_hub_*
            tpu_* transformers_version
        """,
        "names data or a template, or which tokens count in the loss": """
            agent_template columns custom_* dataset* lazy_tokenize load_from_cache_file loss_scale
            model_author model_name model_type response_prefix split_dataset_ratio streaming strict
            system task_type template* truncation_strategy use_hf val_dataset*
        """,
        "numbers of the optimizer": "aligner_lr vit_lr",
    },
    "unsloth": {  # unsloth 2026.8 unsloth_cli/config.py
        "data, logging and the optimizer's numbers": """
            config dataset dry_run enable_* finetune_* format_type hf_token local_dataset num_epochs
            packing random_seed tensorboard_dir train_on_completions use_loftq vision_all_linear
            wandb_*
        """,
    },
    "hf": {  # transformers 5.23 training_args.py
        "the optimizer's numbers, not its states": "warmup_ratio",
        "when it is evaluated, and saving and logging, are outside these steps": """
            eval_* hub_* include_inputs_for_metrics include_tokens_per_second jit_mode_eval log_*
            logging_* overwrite_output_dir past_index save_* trackio_*
        """,
        "how data reaches the host": "dataloader_*",
        "precision of products, not of tensors": "half_precision_backend",
        "transformers' own bookkeeping": """
            _n_gpu deepspeed_plugin distributed_state mp_parameters n_gpu no_cuda push_to_hub_*
            tpu_* transformers_version
        """,
    },
}
