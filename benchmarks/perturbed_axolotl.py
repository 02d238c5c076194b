"""axolotl's own program (load_cfg, load_datasets, train) on a small Llama with LoRA, on a CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from perturbing import BATCH, TOKENS, Watch, rows_in_this_process, small_model, watch_trainers

LIBRARY = "axolotl"
ROWS = {"path": "FOLDER/rows.jsonl", "ds_type": "json", "type": ""}
VALUES: dict[str, Any] = {
    "accelerator_config": {"split_batches": False, "dispatch_batches": False},
    "base_model_config": "FOLDER/model",
    "chat_template": "chatml",
    "cls_model_config": "LlamaConfig",
    "dataloader_num_workers": 1,
    "dataloader_prefetch_factor": 2,
    "datasets": [ROWS, ROWS],
    "device": "cpu",
    "device_map": "cpu",
    "early_stopping_patience": 1,
    "eval_causal_lm_metrics": ["ter"],
    "eval_strategy": "epoch",
    "evaluation_strategy": "epoch",
    "learning_rate": 0.01,
    "max_steps": 3,
    "logging_steps": 1,
    "lr_scheduler": "cosine",
    "lr_groups": [{"name": "x", "modules": ["q_proj"], "lr": 0.1}],
    "model_type": "AutoModelForCausalLM",
    "type_of_model": "LlamaForCausalLM",
    "peft_init_lora_weights": False,
    "peft_layers_pattern": ["layers"],
    "pose_split_on_token_ids": [5],
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "save_strategy": "epoch",
    "special_tokens": {"pad_token": "w5"},
    "test_datasets": [{**ROWS, "split": "train"}],
    "tokenizer_type": "PreTrainedTokenizerFast",
    "tokenizer_config": "FOLDER/model",
    "val_set_size": 0.25,
    "num_epochs": 2.0,
}
_EVALUATED = {"val_set_size": 0.25}
BESIDE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("eval_strategy", "evaluation_strategy", "eval_steps", "evals_per_epoch"), _EVALUATED),
    "early_stopping_patience": {**_EVALUATED, "save_strategy": "steps", "save_steps": 1, "eval_steps": 1},
    "load_best_model_at_end": {**_EVALUATED, "save_strategy": "steps", "save_steps": 1, "eval_steps": 1},
    "dataloader_prefetch_factor": {"dataloader_num_workers": 1},
    "dataloader_persistent_workers": {"dataloader_num_workers": 1},
    "peft_layers_pattern": {"peft_layers_to_transform": [0, 1]},
    "save_steps": {"save_strategy": "steps"},
    "saves_per_epoch": {"save_strategy": None},
}
READ = {
    "deepcompile": "axolotl 0.19 utils/schemas/validation.py: DeepSpeed's compiler, refused without it",
    "do_bench_eval": "axolotl 0.19 utils/callbacks/__init__.py: answers of a benchmark, in an evaluation",
    "do_causal_lm_eval": "axolotl 0.19 utils/callbacks/__init__.py: generated text, in an evaluation",
    "dpo_loss_type": "axolotl 0.19 core/builders/rl.py: loss_type, a function of the same log-sums",
    "dpo_loss_weights": "axolotl 0.19 core/builders/rl.py: DPOConfig's loss_weights, factors",
    "dynamic_checkpoint": "axolotl 0.19 utils/callbacks/dynamic_checkpoint.py: saves on a signal",
    "fp8_config": "axolotl 0.19 core/builders/base.py: read where fp8 is on, which is reported",
    "fp8_enable_fsdp_float8_all_gather": "axolotl 0.19 utils/schemas/validation.py: refused without fp8",
    "pretraining_dataset": "axolotl 0.19 utils/data/sft.py _prepare_streaming_dataset: rows that stream",
    "push_dataset_to_hub": "axolotl 0.19 utils/data/shared.py: uploads prepared rows",
    "role_boundaries": "axolotl 0.19 utils/collators/mm_chat.py: which labels of pictures' chats count",
    "tf32": "axolotl 0.19 utils/config/__init__.py resolve_dtype: the precision of products",
    "tokenizer_use_mistral_common": "axolotl 0.19 loaders/tokenizer.py: another tokenizer",
    **{
        f"use_{name}": f"axolotl 0.19 core/builders/base.py: {name} is told numbers of the run"
        for name in ("comet", "mlflow", "swanlab", "tensorboard", "trackio", "wandb", "otel_metrics")
    },
    **{
        name: "axolotl 0.19 utils/schemas/validation.py: where it is told numbers of the run"
        for name in (
            "comet_project_name",
            "mlflow_experiment_name",
            "mlflow_tracking_uri",
            "swanlab_project",
            "trackio_project_name",
            "wandb_project",
        )
    },
    "added_tokens_overrides": "axolotl 0.19 loaders/tokenizer.py: other names of reserved tokens",
    "flash_optimum": "axolotl 0.19 loaders/model.py: BetterTransformer, which transformers 5 lacks",
    "profiler_steps": "axolotl 0.19 utils/callbacks/profiler.py: records the allocator",
    "hub_model_id": "axolotl 0.19 core/builders/base.py: uploads what is saved",
    "resume_from_checkpoint": "axolotl 0.19 train.py execute_training: tensors of the same size",
    "use_ray": "axolotl 0.19 cli/train.py: the same training function on a worker",
    "torch_compile_options": "axolotl 0.19 utils/schemas/validation.py: refused without torch_compile",
}
"""Keys that a step on a CPU cannot show, and what was read."""


def prepare(folder: Path) -> None:
    """Imports what every run needs."""
    os.environ |= {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "1"}
    import axolotl.cli.config
    import axolotl.common.datasets
    import axolotl.train  # noqa: F401

    rows_in_this_process()
    small_model(folder)


def keys() -> dict[str, Any]:
    """Every field of the schema with its annotation and default."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    return {
        name: (f.annotation, f.get_default(call_default_factory=True))
        for name, f in AxolotlInputConfig.model_fields.items()
    }


def base(folder: Path) -> dict[str, Any]:
    return {
        "base_model": str(folder / "model"),
        "adapter": "lora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_linear": True,
        **{f"lora_{name}_kernel": False for name in ("mlp", "qkv", "o")},  # Triton's
        "lora_embedding_kernel": False,
        "datasets": [{"path": str(folder / "rows.jsonl"), "ds_type": "json", "type": ""}],
        "dataset_prepared_path": str(folder / "prepared"),
        "sequence_len": TOKENS,
        "micro_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "num_epochs": 1,
        "val_set_size": 0,
        "learning_rate": 1e-3,
        "optimizer": "adamw_torch",
        "bf16": False,
        "fp16": False,
        "attn_implementation": "sdpa",
        "save_strategy": "no",
        "dataset_num_proc": 1,
        "output_dir": str(folder / "out"),
    }


def check(folder: Path, changes: dict[str, Any]) -> None:
    """What axolotl makes of a file, without a run. Raises what it raises."""
    from axolotl.cli.config import load_cfg
    from axolotl.utils.dict import DictDefault

    load_cfg(DictDefault({**base(folder), **changes}))


def run(watch: Watch, folder: Path, changes: dict[str, Any]) -> None:
    """Two steps with some keys changed."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import train
    from axolotl.utils.dict import DictDefault

    watch_trainers(watch)
    cfg = load_cfg(DictDefault({**base(folder), **changes}))
    watch.say("cfg", {key: value for key, value in cfg.to_dict().items() if key != "axolotl_config_path"})
    meta = load_datasets(cfg=cfg)
    with watch.watching():
        train(cfg=cfg, dataset_meta=meta)
