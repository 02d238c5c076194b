"""RECIPES: what each training stack's own defaults mean for memory, each with the file and version it was
read in.

A recipe is a table of Setup fields; `methods` holds what it fixes for one method ("adapters" stands for every
method that trains adapters, "quantized" for every quantized base), `loop` what its training loop does beside
the model. Adding a recipe is adding a row here: no other file asks for a recipe's name. `docs/recipes.md` is
generated from it.
"""

from __future__ import annotations

from memplan.planner.tables.loops import PLAIN, TRAINER
from memplan.planner.tables.recipe_row import Recipe

_QUANT = {
    "quant_type": "nf4",
    "double_quant": True,
    "quant_block": 64,
    "quant_storage": "uint8",
    "compute_dtype": "bfloat16",
    "kbit_prepare": True,
}

_FP32_OUTPUTS = "accelerate 1.15 accelerator.py prepare_model -> convert_outputs_to_fp32"
_KBIT = (
    "peft 0.21 utils/other.py prepare_model_for_kbit_training, the documented first step of k-bit training"
)
_TORCHS_FSDP1 = {"use_orig_params": False, "backward_prefetch": "pre"}
_OUR_QUANT = (
    "nf4, double quantization and bfloat16 compute: memplan defaults for qlora (library "
    "defaults: fp4, single quantization, float32)"
)


DEFAULT_RECIPE = "hf"
"""What a setup is trained with where nobody names a recipe."""

RECIPES: dict[str, Recipe] = {
    "raw": Recipe(
        "raw",
        "a plain PyTorch loop",
        PLAIN,
        {"optimizer": "adamw_torch", "optimizer_mode": "foreach"},
        methods={"quantized": {**_QUANT, "checkpointing": "reentrant"}},
        sources={
            **dict.fromkeys(
                _TORCHS_FSDP1, "torch 2.14 distributed/fsdp/fully_sharded_data_parallel.py __init__"
            ),
            "checkpointing": (
                "peft 0.21 utils/other.py prepare_model_for_kbit_training passes {}: torch's default, "
                "reentrant"
            ),
            "optimizer_mode": "torch 2.13 optim/optimizer.py _default_to_fused_or_foreach: foreach on CUDA",
            "kbit_prepare": _KBIT,
        },
        notes=(("quant_type", _OUR_QUANT),),
        # torch 2.14 distributed/fsdp/fully_sharded_data_parallel.py __init__
        when=(({"parallel": "fsdp", "fsdp_version": 1}, _TORCHS_FSDP1),),
    ),
    "hf": Recipe(
        "hf",
        "transformers Trainer + PEFT",
        TRAINER,
        {"optimizer": "adamw_torch_fused", "autocast": "bfloat16", "outputs_fp32": True},
        methods={"quantized": {**_QUANT, "checkpointing": "non_reentrant"}},
        sources={
            "optimizer": "transformers 5.23 training_args.py optim",
            "outputs_fp32": _FP32_OUTPUTS,
            "checkpointing": (
                "transformers 5.23 modeling_utils.py gradient_checkpointing_enable: non-reentrant without "
                "kwargs"
            ),
            "kbit_prepare": _KBIT,
        },
        notes=(
            ("autocast", "bf16=True: memplan default (library default: off)"),
            ("quant_type", _OUR_QUANT),
            (
                "micro_batch",
                "micro-batch 1: memplan default (library default: per_device_train_batch_size=8)",
            ),
        ),
    ),
    "trl": Recipe(
        "trl",
        "TRL's SFTTrainer (trl sft)",
        TRAINER,
        {
            "optimizer": "adamw_torch_fused",
            "autocast": "bfloat16",
            "outputs_fp32": True,
            "weight_dtype": "float32",
            "compute_dtype": "float32",
            "checkpointing": "non_reentrant",
            "loss": "chunked",
        },
        methods={
            "adapters": {"targets": ("peft-default",), "dropout": 0.05, "rank": 16, "alpha": 32},
            "quantized": {
                **_QUANT,
                "double_quant": False,
                "compute_dtype": "float32",
                "kbit_prepare": False,
                "adapter_dtype": "bfloat16",
            },
        },
        sources={
            "weight_dtype": (
                "trl 1.16 trainer/utils.py create_model_from_path: dtype defaults to float32; "
                "trainer/model_config.py dtype"
            ),
            "compute_dtype": (
                "trl 1.16 trainer/utils.py get_quantization_config: bnb_4bit_compute_dtype is the model's "
                "dtype"
            ),
            "double_quant": "trl 1.16 trainer/model_config.py use_bnb_nested_quant False",
            "quant_type": "trl 1.16 trainer/model_config.py bnb_4bit_quant_type nf4",
            "kbit_prepare": (
                "trl 1.16 trainer/sft_trainer.py calls get_peft_model directly; "
                "prepare_model_for_kbit_training is not called"
            ),
            "adapter_dtype": "trl 1.16 trainer/sft_trainer.py: the adapters of a quantized model are cast to bfloat16",
            "checkpointing": "trl 1.16 trainer/base_config.py gradient_checkpointing True, no kwargs: non-reentrant",
            "autocast": "trl 1.16 trainer/base_config.py: bf16 is True unless fp16 is set",
            "loss": (
                "trl 1.16 trainer/utils.py add_fused_lm_head, kernels/chunked_logprob.py: tiles of 4,096 "
                "tokens x 32,768 entries"
            ),
            "targets": "trl 1.16 trainer/model_config.py lora_target_modules None: peft 0.21 utils/constants.py",
            "dropout": "trl 1.16 trainer/model_config.py lora_dropout 0.05",
            "rank": "trl 1.16 trainer/model_config.py lora_r 16",
            "alpha": "trl 1.16 trainer/model_config.py lora_alpha 32",
            "optimizer": "transformers 5.23 training_args.py optim (TRL does not override it)",
            "outputs_fp32": _FP32_OUTPUTS,
        },
        notes=(
            (
                "weight_dtype",
                "TRL loads float32 weights unless dtype is set: --dtype bfloat16 halves them",
            ),
            ("sequence_length", "library default: max_length=1024"),
            (
                "micro_batch",
                "micro-batch 1: memplan default (library default: per_device_train_batch_size=8)",
            ),
        ),
    ),
    "axolotl": Recipe(
        "axolotl",
        "axolotl",
        TRAINER,
        {
            "optimizer": "adamw_torch_fused",
            "autocast": "bfloat16",
            "outputs_fp32": True,
            "allocator": "expandable",
            "pad_to_multiple_of": 64,
            "trl": "1.13",
            "mixer_kernels": ("fla",),
        },
        methods={
            "full": {"upcast_modules": "norms_and_embeddings"},
            "freeze": {"upcast_modules": "norms_and_embeddings"},
            "adapters": {"upcast_modules": "routers"},
            "quantized": {
                **_QUANT,
                "kbit_prepare": False,
                "quant_storage": "bfloat16",
                "upcast_modules": "unquantized",
            },
        },
        sources={
            "weight_dtype": "axolotl 0.21 utils/config/__init__.py: bf16 (auto) -> torch_dtype bfloat16",
            "autocast": (
                "axolotl 0.21 core/builders/base.py _configure_precision_settings: "
                "TrainingArguments(bf16=True)"
            ),
            "optimizer": "axolotl 0.21 utils/schemas/training.py optimizer adamw_torch_fused",
            "allocator": "axolotl 0.21 utils/__init__.py set_pytorch_cuda_alloc_conf: expandable_segments:True",
            "upcast_modules": "axolotl 0.19 loaders/model.py _configure_embedding_dtypes: without FSDP norms, routers, embeddings and "
            "head go to float32; with an adapter or flash attention all but routers go back; on a quantized base "
            "what is not quantized goes too (0.18 _prepare_model_for_quantization), but for quantize_moe_experts",
            "double_quant": "axolotl 0.21 loaders/model.py: bnb_4bit_use_double_quant True",
            "quant_type": "axolotl 0.21 loaders/model.py: bnb_4bit_quant_type nf4",
            "quant_storage": "axolotl 0.21 loaders/model.py: bnb_4bit_quant_storage bfloat16",
            "compute_dtype": "axolotl 0.21 loaders/model.py: bnb_4bit_compute_dtype = torch_dtype",
            "pad_to_multiple_of": "axolotl core/builders/causal.py build (03ad8389): 64 unless pad_to_sequence_len is said",
            "trl": "axolotl 0.19 pyproject.toml: trl 1.9.0",
            "kbit_prepare": "axolotl 0.21 loaders/model.py: after prepare_model_for_kbit_training norms and "
            "embeddings are cast back to torch_dtype: upcast_modules has what stays",
            "checkpointing": "axolotl 0.21 utils/schemas/config.py gradient_checkpointing False; where "
            "true, use_reentrant False "
            "(utils/config/__init__.py)",
            "outputs_fp32": _FP32_OUTPUTS,
            "mixer_kernels": "axolotl 0.19 pyproject.toml: fla-core 0.5.2 is a dependency, but on aarch64; packed rows "
            "are refused without it (monkeypatch/models/qwen3_5/modeling.py)",
        },
        notes=(
            (
                "rank",
                "axolotl has no default for lora_r, lora_alpha or lora_target_linear; memplan defaults: 16, 32 "
                "and all linear layers",
            ),
            (
                "dropout",
                "axolotl's LoRA kernels, on by default where dropout is 0, save fewer tensors than "
                "PEFT's layers; they are not modeled, so the prediction errs on the high side",
            ),
        ),
        whole_updates=True,  # axolotl 0.19 pyproject.toml: peft 0.20
        dropout_beside_experts=True,  # axolotl 0.19 loaders/adapter.py _patch_peft_param_wrapper_dropout
        when=(
            ({"attention": "flash_attention_2", "quant_type": "none"}, {"upcast_modules": "routers"}),
            ({"quantize_experts": True}, {"upcast_modules": "routers"}),
            ({"parallel": "fsdp"}, {"upcast_modules": "none"}),
        ),
    ),
    "llamafactory": Recipe(
        "llamafactory",
        "LLaMA-Factory (v0 arguments)",
        TRAINER,
        {
            "optimizer": "adamw_torch_fused",
            "autocast": "bfloat16",
            "outputs_fp32": True,
            "trainable_dtype": "float32",
            "checkpointing": "reentrant",
            "vision_tower": "frozen",
            "projector": "frozen",
            "image_scaled_to": 768 * 768,
            "video_scaled_to": 256 * 256,
            "video_fps": 2.0,
            "video_frames": 128,
            "pad_to_multiple_of": 8,
        },
        methods={
            "adapters": {"rank": 8, "alpha": 16, "dropout": 0.0, "targets": ("all-linear",)},
            "quantized": {**_QUANT, "kbit_prepare": False, "quant_storage": "bfloat16"},
        },
        sources={
            "weight_dtype": (
                "LLaMA-Factory 0.9.5 hparams/parser.py: bf16 -> compute_dtype bfloat16; model/patcher.py "
                "loads in it"
            ),
            "autocast": (
                "LLaMA-Factory 0.9.5 hparams/parser.py: bf16 is the Trainer's, on in its examples "
                "(memplan default; library default: off)"
            ),
            "trainable_dtype": (
                "LLaMA-Factory 0.9.5 model/adapter.py init_adapter: trainable parameters go to float32 "
                "unless pure_bf16"
            ),
            "checkpointing": "LLaMA-Factory 0.9.5 hparams/model_args.py disable_gradient_checkpointing "
            "False, use_reentrant_gc True; "
            "model/model_utils/checkpointing.py",
            **dict.fromkeys(
                ("vision_tower", "projector"),
                "LLaMA-Factory 0.9.5 hparams/finetuning_args.py freeze_vision_tower, "
                "freeze_multi_modal_projector True",
            ),
            "image_scaled_to": "LLaMA-Factory 0.9.5 hparams/model_args.py image_max_pixels 768 * 768",
            "video_scaled_to": "LLaMA-Factory 0.9.5 hparams/model_args.py video_max_pixels 256 * 256",
            "video_fps": "LLaMA-Factory 0.9.5 hparams/model_args.py video_fps 2.0",
            "video_frames": "LLaMA-Factory 0.9.5 hparams/model_args.py video_maxlen 128",
            "pad_to_multiple_of": "LLaMA-Factory 0.9.5 train/sft/workflow.py run_sft: 8 in training",
            "mixer_kernels": "LLaMA-Factory 0.9.5 model/patcher.py: with fa2 Qwen3.5 is refused without fla",
            "rank": "LLaMA-Factory 0.9.5 hparams/finetuning_args.py lora_rank 8",
            "alpha": "LLaMA-Factory 0.9.5 hparams/finetuning_args.py: lora_alpha is 2 x lora_rank",
            "dropout": "LLaMA-Factory 0.9.5 hparams/finetuning_args.py lora_dropout 0.0",
            "targets": (
                "LLaMA-Factory 0.9.5 hparams/finetuning_args.py lora_target 'all' (model/model_utils/misc.py)"
            ),
            "quant_type": "LLaMA-Factory 0.9.5 hparams/model_args.py quantization_type nf4",
            "double_quant": "LLaMA-Factory 0.9.5 hparams/model_args.py double_quantization True",
            "quant_storage": (
                "LLaMA-Factory 0.9.5 model/model_utils/quantization.py: bnb_4bit_quant_storage = "
                "compute_dtype"
            ),
            "compute_dtype": (
                "LLaMA-Factory 0.9.5 model/model_utils/quantization.py: bnb_4bit_compute_dtype = "
                "compute_dtype"
            ),
            "kbit_prepare": (
                "LLaMA-Factory 0.9.5 model/loader.py: its own prepare_model_for_training, which casts "
                "nothing by default"
            ),
            "optimizer": "transformers 5.23 training_args.py optim (not overridden)",
            "outputs_fp32": _FP32_OUTPUTS,
        },
        notes=(
            (
                "micro_batch",
                "micro-batch 1: memplan default (library default: per_device_train_batch_size=8)",
            ),
        ),
        when=(
            ({"parallel": "fsdp"}, {"checkpointing": "non_reentrant"}),
            ({"attention": "flash_attention_2"}, {"mixer_kernels": ("fla",)}),
        ),
    ),
    "paper": Recipe(
        "paper",
        "QLoRA as its paper defines it",
        TRAINER,
        {"optimizer": "paged_adamw_32bit", "autocast": "bfloat16", "outputs_fp32": True},
        methods={
            "qlora": {
                **_QUANT,
                "kbit_prepare": False,
                "rank": 64,
                "adapter_dtype": "bfloat16",
                "checkpointing": "non_reentrant",
            }
        },
        only=("qlora",),
        sources={
            "rank": "Dettmers et al. 2023, section 4 and appendix B",
            "optimizer": "Dettmers et al. 2023, section 3, paged optimizers",
            "double_quant": "Dettmers et al. 2023, section 3, double quantization",
            "quant_type": "Dettmers et al. 2023, section 3, 4-bit NormalFloat",
            "adapter_dtype": "Dettmers et al. 2023, section 3, QLoRA: computation and adapters in bfloat16",
            "targets": "Dettmers et al. 2023, section 4: LoRA on all linear layers",
        },
    ),
}
