"""torchtune's own recipe (LoRAFinetuneRecipeSingleDevice) on a small Llama, on a CPU. A key counts only
where the recipe, or the part that it makes of it, read it.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

from perturbing import BATCH, CONFIG, TOKENS, Watch, rows_in_this_process, small_model

LIBRARY = "torchtune"
VALUES: dict[str, Any] = {
    "checkpointer": {"safe_serialization": False},
    "clip_grad_norm": 1.0,
    "collate_fn": "torchtune.data.padded_collate_sft",
    "cudnn_deterministic_mode": "default",
    "dataset.add_eos": False,
    "dataset.column": "other",
    "dataset.split": "train[:12]",
    "epochs": 2,
    "log_every_n_steps": 2,
    "log_peak_memory_stats": True,
    "loss.ignore_index": -1,
    "loss.num_output_chunks": 4,
    "low_cpu_ram": True,
    "lr_scheduler": {"num_warmup_steps": 5},
    "max_steps_per_epoch": 3,
    "metric_logger": {"filename": "log.txt"},
    "model.attn_dropout": 0.1,
    "model.max_seq_len": 128,
    "model.norm_eps": 1e-3,
    "optimizer.betas": [0.8, 0.9],
    "optimizer.eps": 1e-6,
    "optimizer.lr": 0.1,
    "optimizer.maximize": True,
    "optimizer.weight_decay": 0.5,
    "output_dir": "FOLDER/elsewhere",
    "profiler": {"enabled": True, "cpu": True, "output_dir": "FOLDER/profile"},
    "save_adapter_weights_only": True,
    "seed": 7,
    "shuffle": False,
    "tokenizer._component_": "perturbed_torchtune.OtherWords",
    "tokenizer.path": "FOLDER/model",
}
BESIDE: dict[str, dict[str, Any]] = {}
_RL = "torchtune 0.6.1 recipes/ppo_full_finetune_single_device.py, recipes/dev: {}"
_DISTRIBUTED = "torchtune 0.6.1 recipes/lora_finetune_distributed.py: {}"
READ = {
    "batch_size_val": "torchtune 0.6.1 recipes/full_finetune_distributed.py: rows without gradients",
    "dataset_val": "torchtune 0.6.1 recipes/full_finetune_distributed.py: rows of a validation",
    "enable_async_checkpointing": _DISTRIBUTED.format("copies on the host, while it saves"),
    "enable_kv_cache": "torchtune 0.6.1 recipes/generate.py, ppo_full_finetune_single_device.py: generation",
    "keep_last_n_checkpoints": "torchtune 0.6.1 training/checkpointing/_utils.py: which files stay",
    "kd_loss": "torchtune 0.6.1 recipes/knowledge_distillation_single_device.py: beside a reported teacher",
    "kd_ratio": "torchtune 0.6.1 recipes/knowledge_distillation_single_device.py: a factor",
    "quantizer": "torchtune 0.6.1 recipes/quantize.py: after training",
    "resume_from_checkpoint": "torchtune 0.6.1 recipes/lora_finetune_single_device.py: the same states",
    "run_val_every_n_steps": "torchtune 0.6.1 recipes/full_finetune_distributed.py: when it validates",
    "teacher_checkpointer": "torchtune 0.6.1 recipes/knowledge_distillation_single_device.py: a file",
    **{
        name: _RL.format("a number of its loss")
        for name in ("gamma", "lmbda", "kl_coeff", "whiten_rewards", "reward_penalty", "penalize_no_eos")
    },
    **{
        name: _RL.format("how a model that is reported generates")
        for name in ("temperature", "top_k", "stop_token_ids", "min_response_length", "max_generated_tokens")
    },
    **{
        name: _RL.format("where a model that is reported comes from")
        for name in ("ref_policy_checkpointer", "value_checkpointer", "reward_checkpointer")
    },
}
"""Keys that this recipe does not read, and what was read."""


class Words:
    """A tokenizer of words, for torchtune's datasets."""

    pad_id, eos_id = 0, 1

    def __init__(self, path: str, max_seq_len: int) -> None:
        import transformers

        self.words = transformers.AutoTokenizer.from_pretrained(path)
        self.max_seq_len = max_seq_len

    def encode(self, text: str, add_bos: bool = True, add_eos: bool = True) -> list[int]:
        """The words' numbers, as many as fit."""
        return list(self.words(text)["input_ids"])[: self.max_seq_len]


class OtherWords(Words):
    """The same under another name."""


def recipe() -> Any:
    """The recipe's class: its folder is no package that may be imported."""
    spec = importlib.util.find_spec("recipes")
    assert spec is not None and spec.origin is not None
    file = Path(spec.origin).parent / "lora_finetune_single_device.py"
    found = importlib.util.spec_from_file_location(file.stem, file)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.LoRAFinetuneRecipeSingleDevice


def prepare(folder: Path) -> None:
    """Imports what every run needs, and writes the model and sentences."""
    recipe()
    rows_in_this_process()
    small_model(folder)
    words = " ".join(f"w{i}" for i in range(3, 3 + 2 * TOKENS))
    row = json.dumps({"text": words, "other": words}) + "\n"
    (folder / "words.jsonl").write_text(row * 16, encoding="utf-8")


def keys() -> dict[str, Any]:
    """Every key that has a value or a source here."""
    return {name: (object, None) for name in {**VALUES, **READ}}


def config(folder: Path, changes: dict[str, Any]) -> Any:
    """A torchtune file with some keys changed."""
    made: dict[str, Any] = {
        "model": {
            "_component_": "torchtune.models.llama3.lora_llama3",
            "lora_attn_modules": ["q_proj", "v_proj"],
            "apply_lora_to_mlp": True,
            "apply_lora_to_output": False,
            "lora_rank": 4,
            "lora_alpha": 8,
            "vocab_size": CONFIG["vocab_size"],
            "num_layers": CONFIG["num_hidden_layers"],
            "num_heads": CONFIG["num_attention_heads"],
            "num_kv_heads": CONFIG["num_key_value_heads"],
            "embed_dim": CONFIG["hidden_size"],
            "intermediate_dim": CONFIG["intermediate_size"],
            "max_seq_len": CONFIG["max_position_embeddings"],
        },
        "tokenizer": {
            "_component_": "perturbed_torchtune.Words",
            "path": str(folder / "model"),
            "max_seq_len": TOKENS,
        },
        "dataset": {
            "_component_": "torchtune.datasets.text_completion_dataset",
            "source": "json",
            "data_files": str(folder / "words.jsonl"),
            "column": "text",
            "split": "train",
        },
        "checkpointer": {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": str(folder / "model"),
            "checkpoint_files": ["model.safetensors"],
            "output_dir": str(folder / "out"),
            "model_type": "LLAMA3",
        },
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-3},
        "lr_scheduler": {
            "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
            "num_warmup_steps": 1,
        },
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "metric_logger": {
            "_component_": "torchtune.training.metric_logging.DiskLogger",
            "log_dir": str(folder / "logs"),
        },
        "batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "epochs": 1,
        "max_steps_per_epoch": 2,
        "shuffle": True,
        "seed": 1,
        "resume_from_checkpoint": False,
        "output_dir": str(folder / "out"),
        "device": "cpu",
        "dtype": "fp32",
        "compile": False,
    }
    for name, value in changes.items():
        section = made
        *path, last = name.split(".")
        for part in path:
            section = section.setdefault(part, {})
        if isinstance(value, dict):
            section[last] = {**section.get(last, {}), **copy.deepcopy(value)}
        else:
            section[last] = value
    return made


def check(folder: Path, changes: dict[str, Any]) -> None:
    """Nothing refuses a key before the recipe runs."""


def run(watch: Watch, folder: Path, changes: dict[str, Any]) -> None:
    """Two steps or more with some keys changed. LookupError where a key was not read."""
    import omegaconf
    from torch.optim.optimizer import register_optimizer_step_post_hook

    asked: set[str] = set()
    get = omegaconf.DictConfig._get_impl

    def noted(self: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        asked.add(str(key))
        return get(self, key, *args, **kwargs)

    omegaconf.DictConfig._get_impl = noted
    made = config(folder, changes)
    watch.say("config", made)
    steps: list[int] = []

    def stepped(*_: Any) -> None:
        steps.append(1)
        watch.end()
        if len(steps) < made["max_steps_per_epoch"]:
            watch.begin()

    register_optimizer_step_post_hook(stepped)
    with watch.watching():
        cfg = omegaconf.OmegaConf.create(made)
        made_of = recipe()(cfg)
        made_of.setup(cfg)
        watch.begin(made_of._model)
        made_of.train()
    unread = [name for name in changes if name.rpartition(".")[2] not in asked and "." not in name]
    if unread:
        raise LookupError(f"the recipe does not read {', '.join(unread)}")
