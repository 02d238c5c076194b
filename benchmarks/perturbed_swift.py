"""ms-swift's own program (SwiftSft) on a small Llama with LoRA, on a CPU."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import typing
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

LIBRARY = "ms-swift"
VALUES = TRAINING_VALUES | {
    "columns": {"other": "messages"},
    "dataset": ["FOLDER/others.jsonl"],
    "val_dataset": ["FOLDER/others.jsonl"],
    "loss_scale": "all",
    "response_prefix": "w5",
    "split_dataset_ratio": 0.25,
    "system": "w5 w6",
    "task_type": "causal_lm",
    "template": "llama",
    "truncation_strategy": "left",
}
_EVALUATED = {"split_dataset_ratio": 0.25}
BESIDE = TRAINING_BESIDE | {"eval_on_start": _EVALUATED}
READ = trainers.READ | {
    **{
        name: "ms-swift 4.6 optimizers/multimodal.py: learning rates of parts that a text model lacks"
        for name in ("aligner_lr", "vit_lr")
    },
    "eval_metric": "ms-swift 4.6 metrics/: numbers of an evaluation",
    "template_backend": "ms-swift 4.6 template/base.py: which code makes the text of a conversation",
    "custom_dataset_info": "ms-swift 4.6 arguments/base_args/data_args.py: a file of names of datasets",
    "custom_register_path": "ms-swift 4.6 arguments/base_args/base_args.py: a file of code that is run first",
    "eval_use_evalscope": "ms-swift 4.6 trainers/mixin.py: an evaluation by another program",
    "model_type": "ms-swift 4.6 model/register.py: which loader and template a checkpoint has",
}
"""Keys that a step on a CPU cannot show, and what was read."""


def prepare(folder: Path) -> None:
    """Imports what every run needs, and writes the model and conversations."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "MODELSCOPE_OFFLINE": "1"}
    import swift.pipelines.train.sft  # noqa: F401

    rows_in_this_process()
    small_model(folder)
    words = " ".join(f"w{i}" for i in range(3, 3 + TOKENS))
    turns = [{"role": "user", "content": words}, {"role": "assistant", "content": words}]
    rows = (json.dumps({"messages": turns}) + "\n") * 16
    for name in ("rows", "others"):
        (folder / f"{name}_of_talk.jsonl").write_text(rows, encoding="utf-8")
    shutil.copy(folder / "others_of_talk.jsonl", folder / "others.jsonl")


def keys() -> dict[str, Any]:
    """Every argument of its class: annotation and default."""
    from swift.arguments import SftArguments

    hints = typing.get_type_hints(SftArguments)
    found = {}
    for field in dataclasses.fields(SftArguments):
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        found[field.name] = (hints[field.name], default)
    return found


def check(folder: Path, changes: dict[str, Any]) -> Any:
    """Its arguments with some changed. Raises what they raise."""
    from swift.arguments import SftArguments

    shutil.rmtree(folder / "out", ignore_errors=True)
    common = {
        "model": str(folder / "model"),
        "model_type": "llama",
        "template": "dummy",
        "tuner_type": "lora",
        "lora_rank": 4,
        "target_modules": ["all-linear"],
        "dataset": [str(folder / "rows_of_talk.jsonl")],
        "split_dataset_ratio": 0.0,
        "max_length": TOKENS,
        "truncation_strategy": "right",
        "torch_dtype": "float32",
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "output_dir": str(folder / "out"),
        "add_version": False,
        "report_to": ["none"],
        "save_strategy": "no",
        "use_cpu": True,
        "use_hf": True,
        "dataloader_num_workers": 0,
        "dataset_num_proc": 1,
    }
    return SftArguments(**{**common, **changes})


def run(watch: Watch, folder: Path, changes: dict[str, Any]) -> None:
    """Two steps with some arguments changed."""
    from swift.pipelines.train.sft import SwiftSft

    watch_trainers(watch)
    args = check(folder, changes)
    watch.settings |= flat(args, "SftArguments")
    with watch.watching():
        SwiftSft(args).main()
