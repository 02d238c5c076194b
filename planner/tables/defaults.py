"""Every Setup field where neither method nor recipe says anything, each with where it was read."""

from __future__ import annotations

from typing import Any

from memplan.planner.tables.torch_versions import NEWEST

_LORA = {"rank": 16, "alpha": 32, "dropout": 0.0, "targets": ("all-linear",), "adapter_dtype": "float32"}
BASE: dict[str, Any] = {
    "micro_batch": 1,
    "padded": False,
    "packed_documents": 1,
    "gradient_accumulation": 1,
    "weight_dtype": "bfloat16",
    "autocast": "none",
    **_LORA,
    "modules_to_save": (),
    "quant_type": "none",
    "double_quant": False,
    "quant_block": 64,
    "quant_storage": "uint8",
    "compute_dtype": "bfloat16",
    "kbit_prepare": False,
    "upcast_modules": "none",
    "checkpointing": "none",
    "checkpoint_every": 1,
    "checkpoint_offload": False,
    "load": "pretrained",
    "attention": "sdpa",
    "loss": "full",
    "optimizer": "adamw_torch",
    "zero_grad": "before_forward",
    "retain_outputs": False,
    "outputs_fp32": False,
    "trainable_dtype": "weight",
    "allocator": "native",
    "torch": NEWEST,
    "gpu": None,
    "gpus": 1,
    "parallel": "none",
    "fsdp_version": 2,
    "reshard_after_forward": True,
    "load_on_host": False,
    "gradient_as_bucket_view": False,
    "offload": "none",
    "zero_reduce_bucket": 5 * 10**8,
    "zero_prefetch_bucket": 5 * 10**7,
    "zero_persistence_threshold": 10**5,
    "zero_live_parameters": 10**9,
    "zero_reuse_distance": 10**9,
    "zero_sub_group": 10**9,
    "zero_overlap_comm": None,
    "init_rank": None,
    "target_rank": None,
    "importance_buffers": False,
    "virtual_tokens": None,
    "trainable_layers": None,
    "bottleneck": None,
    "adapter": None,
    "device": "cuda",
}
"""The fallback of every field: what a plain loop does when nobody says otherwise."""


BASE_SOURCES: dict[str, str] = {
    "weight_dtype": "transformers 5.23 modeling_utils.py from_pretrained: dtype='auto', the checkpoint's own",
    "adapter_dtype": "peft 0.21 tuners/tuners_utils.py cast_adapter_dtype: float16 and bfloat16 adapters become float32",
    "attention": "transformers 5.23 modeling_utils.py: sdpa where the class supports it",
    "loss": "transformers 5.23 loss/loss_utils.py ForCausalLMLoss: whole logits, then float32",
    "load": "transformers 5.23 core_model_loading.py; caching_allocator_warmup in modeling_utils.py",
    "quant_block": "bitsandbytes 0.50 functional.py quantize_4bit: blocksize 64",
    "quant_storage": "transformers 5.23 utils/quantization_config.py BitsAndBytesConfig: bnb_4bit_quant_storage uint8",
    "optimizer": "ours: torch.optim.AdamW in its default form",
    "zero_grad": "transformers 5.23 trainer.py zeroes after the step, before the next forward: the same moments",
    "allocator": "torch 2.13 c10/cuda/CUDAAllocatorConfig.h: expandable_segments is off",
    "torch": "the newest version whose allocator was compared with its own CUDA build (planner/tables/torch_versions.py)",
    "trainable_layers": "LLaMA-Factory 0.9.5 hparams/finetuning_args.py freeze_trainable_layers 2",
    "init_rank": "peft 0.21 tuners/adalora/config.py init_r 12",
    "target_rank": "peft 0.21 tuners/adalora/config.py target_r 8",
    "fsdp_version": "transformers 5.23 training_args.py _process_fsdp_args; accelerate's own files and options say 1",
    "reshard_after_forward": "accelerate 1.15 utils/dataclasses.py FullyShardedDataParallelPlugin: true for FSDP2",
    "load_on_host": "transformers 5.23 quantizers/quantizer_bnb_4bit.py update_device_map: onto the GPU",
    "gradient_as_bucket_view": "torch 2.13 nn/parallel/distributed.py",
    **dict.fromkeys(
        (
            "zero_reduce_bucket",
            "zero_prefetch_bucket",
            "zero_persistence_threshold",
            "zero_live_parameters",
            "zero_reuse_distance",
            "zero_sub_group",
            "zero_overlap_comm",
        ),
        "deepspeed 0.19.8 runtime/zero/config.py",
    ),
    "importance_buffers": "peft 0.21 tuners/adalora/layer.py RankAllocator.update_ipt, run by update_and_allocate",
}
"""Where the fallbacks that come from a library were read; a field in no `sources` is our choice."""
