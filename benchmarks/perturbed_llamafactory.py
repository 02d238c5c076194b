"""LLaMA-Factory's own program (get_train_args, run_sft) on a small Llama with LoRA, on a CPU."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import perturbed_trainers as trainers
from perturbing import (
    BATCH,
    TOKENS,
    TRAINING_BESIDE,
    TRAINING_VALUES,
    Watch,
    flat,
    rows_in_this_process,
    small_model,
    watch_trainers,
)

LIBRARY = "llamafactory"
VALUES = TRAINING_VALUES | {
    "dataset": "others",
    "dataset_dir": "FOLDER/.",
    "eval_dataset": "others",
    "interleave_probs": "0.5,0.5",
    "max_samples": 12,  # of 16 rows: a step's rows stay as many
    "ref_model_quantization_bit": 4,
    "reward_model_quantization_bit": 4,
    "template": "alpaca",
    "tool_format": "qwen",
}
_EVALUATED = {"val_size": 0.25}
_STEPS = {"eval_strategy": "steps", "eval_steps": 10, "save_strategy": "steps", "save_steps": 10}
BESIDE = TRAINING_BESIDE | {
    "do_eval": _EVALUATED,
    "early_stopping_steps": {
        **_EVALUATED,
        **_STEPS,
        "metric_for_best_model": "loss",
        "load_best_model_at_end": True,
    },
    "eval_on_start": _EVALUATED,
    "interleave_probs": {"dataset": "rows,others", "mix_strategy": "interleave_under"},
}
READ = trainers.READ | {
    "export_quantization_bit": "llamafactory 0.9.5 model/model_utils/quantization.py: where it exports",
    "generation_config": "llamafactory 0.9.5 model/patcher.py: a file of numbers of generation",
    "infer_backend": "llamafactory 0.9.5 hparams/parser.py: refused where it trains",
    "quantization_device_map": "llamafactory 0.9.5 hparams/parser.py: refused where it trains",
    "streaming": "llamafactory 0.9.5 data/loader.py: rows come one by one",
    "tokenized_path": "llamafactory 0.9.5 data/loader.py: where the tokens of the rows are kept",
    "use_swanlab": "llamafactory 0.9.5 train/trainer_utils.py get_swanlab_callback: logging",
}
"""Keys that a step on a CPU cannot show, and what was read."""


def prepare(folder: Path) -> None:
    """Imports what every run needs, and writes the model and a dataset with its description."""
    os.environ |= {"DISABLE_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"}
    import llamafactory.hparams.parser
    import llamafactory.train.tuner  # noqa: F401

    rows_in_this_process()
    small_model(folder)
    words = " ".join(f"w{i}" for i in range(3, 3 + TOKENS))
    rows = [{"instruction": words, "input": "", "output": words} for _ in range(16)]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    info = {name: {"file_name": "rows.json"} for name in ("rows", "others")}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


def keys() -> dict[str, Any]:
    """Every argument of its parser: annotation and default."""
    from llamafactory.hparams.parser import _TRAIN_ARGS

    found = {}
    for cls in _TRAIN_ARGS:
        for field in dataclasses.fields(cls):
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            found[field.name] = (field.type, default)
    return found


def base(folder: Path) -> dict[str, Any]:
    """What a file says before a key is changed."""
    return {
        "model_name_or_path": str(folder / "model"),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 4,
        "lora_target": "all",
        "dataset": "rows",
        "dataset_dir": str(folder),
        "template": "empty",
        "cutoff_len": TOKENS,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "output_dir": str(folder / "out"),
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "overwrite_cache": True,
    }


def check(folder: Path, changes: dict[str, Any]) -> dict[str, str]:
    """What the parser makes of a file, without a run. Raises what it raises."""
    from llamafactory.hparams import get_train_args

    shutil.rmtree(folder / "out", ignore_errors=True)
    parts = get_train_args({**base(folder), **changes})
    return {key: text for part in parts for key, text in flat(part, type(part).__name__).items()}


def run(watch: Watch, folder: Path, changes: dict[str, Any]) -> None:
    """Two steps with some keys changed."""
    from llamafactory.train.tuner import _training_function

    watch_trainers(watch)
    watch.settings |= check(folder, changes)
    shutil.rmtree(folder / "out", ignore_errors=True)
    with watch.watching():
        _training_function({"args": {**base(folder), **changes}, "callbacks": []})
