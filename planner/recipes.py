"""RECIPES: what each training stack's own defaults mean for memory, each with the file and version it was read in.

A recipe is a table of Setup fields; `methods` holds what it fixes for one method. Adding a recipe is adding a row here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training stack: Setup defaults, those per method, and where each was read. `ready` False refuses politely."""

    name: str
    summary: str
    defaults: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


_LORA = {"rank": 16, "alpha": 32, "dropout": 0.0, "targets": ("all-linear",), "adapter_dtype": "float32"}
_QUANT = {"quant_type": "nf4", "double_quant": True, "quant_block": 64, "quant_storage": "uint8", "compute_dtype": "bfloat16", "kbit_prepare": True}

BASE: dict[str, Any] = {
    "micro_batch": 1, "padded": False, "packed_documents": 1, "gradient_accumulation": 1, "weight_dtype": "bfloat16", "autocast": "none",
    **_LORA, "modules_to_save": (), "quant_type": "none", "double_quant": False, "quant_block": 64, "quant_storage": "uint8",
    "compute_dtype": "bfloat16", "kbit_prepare": False, "checkpointing": "none", "checkpoint_every": 1, "checkpoint_offload": False,
    "load": "pretrained", "attention": "sdpa", "loss": "full", "optimizer": "adamw_torch", "zero_grad": "before_forward",
    "retain_outputs": False, "outputs_fp32": False, "trainable_dtype": "weight", "allocator": "native", "gpu": None, "gpus": 1, "parallel": "none",
    "init_rank": None, "target_rank": None, "importance_buffers": False, "virtual_tokens": None, "trainable_layers": None, "bottleneck": None,
    "adapter": None, "device": "cuda",
}  # fmt: skip
"""The fallback of every field: what a plain loop does when nobody says otherwise."""

RECIPES: dict[str, Recipe] = {
    "raw": Recipe(
        "raw", "a plain PyTorch loop",
        {"optimizer": "adamw_torch", "optimizer_mode": "foreach"},
        methods={"qlora": {**_QUANT, "checkpointing": "reentrant"}},
        sources={"checkpointing": "peft 0.21 utils/other.py prepare_model_for_kbit_training passes {}: torch's default, reentrant"},
    ),
    "hf": Recipe(
        "hf", "transformers Trainer + PEFT",
        {"optimizer": "adamw_torch_fused", "autocast": "bfloat16", "outputs_fp32": True},
        methods={"qlora": {**_QUANT, "checkpointing": "non_reentrant"}},
        sources={
            "optimizer": "transformers 5.23 training_args.py optim",
            "outputs_fp32": "accelerate 1.15 accelerator.py prepare_model -> convert_outputs_to_fp32",
            "checkpointing": "transformers 5.23 modeling_utils.py gradient_checkpointing_enable: use_reentrant=False where no kwargs are given",
        },
        notes=("bf16=True is our choice (the library's default is off)",
               "nf4, double quantisation and bfloat16 compute are our choice for qlora (the library's bare defaults are fp4, single, float32)"),
    ),
    "paper": Recipe(
        "paper", "QLoRA as its paper defines it",
        {"optimizer": "paged_adamw_32bit", "autocast": "bfloat16", "outputs_fp32": True},
        methods={"qlora": {**_QUANT, "kbit_prepare": False, "rank": 64, "adapter_dtype": "bfloat16", "checkpointing": "non_reentrant"}},
        only=("qlora",),
        sources={"rank": "Dettmers et al. 2023, section 4 and appendix B", "optimizer": "Dettmers et al. 2023, section 3, paged optimizers"},
    ),
}  # fmt: skip

PLANNED = ("trl", "axolotl", "llamafactory")
"""Recipes of the contract that have no row yet: named in a polite refusal."""
