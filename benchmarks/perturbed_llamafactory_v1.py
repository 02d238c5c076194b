"""LLaMA-Factory's v1 program (llamafactory.v1, run_sft) on a small Llama, on a CPU."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import typing
from pathlib import Path
from typing import Any

from perturbing import BATCH, TOKENS, Watch, flat, rows_in_this_process, small_model

LIBRARY = "llamafactory"
VALUES: dict[str, Any] = {
    "eval_dataset": "FOLDER/others.yaml",
    "max_steps": 3,
    "save_epochs": 1.0,
    "train_dataset": "FOLDER/others.yaml",
}
BESIDE: dict[str, dict[str, Any]] = {}
READ = {
    "resume_from_checkpoint": "llamafactory 0.9.5 v1/core/utils/checkpoint.py: tensors of the same size",
}
"""Keys that a step on a CPU cannot show, and what was read."""


def prepare(folder: Path) -> None:
    """Imports what every run needs, and writes the model and two files of datasets."""
    os.environ |= {"USE_V1": "1", "HF_HUB_OFFLINE": "1"}
    import llamafactory.v1.trainers.sft_trainer  # noqa: F401

    rows_in_this_process()
    small_model(folder)
    words = " ".join(f"w{i}" for i in range(3, 3 + 2 * TOKENS))
    rows = [{"instruction": words, "input": "", "output": words} for _ in range(16)]
    (folder / "talk.json").write_text(json.dumps(rows), encoding="utf-8")
    for name in ("rows", "others"):
        info = {name: {"path": str(folder / "talk.json"), "source": "local", "converter": "alpaca"}}
        (folder / f"{name}.yaml").write_text(json.dumps(info), encoding="utf-8")


def keys() -> dict[str, Any]:
    """Every argument of its parser: annotation and default."""
    from llamafactory.v1.config import DataArguments, ModelArguments, SampleArguments, TrainingArguments

    found = {}
    for cls in (ModelArguments, DataArguments, TrainingArguments, SampleArguments):
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            found[field.name] = (hints[field.name], default)
    return found


def arguments(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """A file with some keys changed."""
    return {
        "model": str(folder / "model"),
        "train_dataset": str(folder / "rows.yaml"),
        "cutoff_len": TOKENS,
        "micro_batch_size": BATCH,
        "global_batch_size": BATCH,
        "bf16": False,
        "max_steps": 2,
        "batching_workers": 0,
        "output_dir": str(folder / "out"),
        **changes,
    }


def check(folder: Path, changes: dict[str, Any]) -> Any:
    """Its arguments with some changed. Raises what they raise."""
    from llamafactory.v1.config import get_args

    shutil.rmtree(folder / "out", ignore_errors=True)
    return get_args(arguments(folder, changes))


def run(watch: Watch, folder: Path, changes: dict[str, Any]) -> None:
    """Two steps or more with some keys changed."""
    from llamafactory.v1.trainers.sft_trainer import run_sft
    from torch.optim.optimizer import register_optimizer_step_post_hook

    for part in check(folder, changes):
        watch.settings |= flat(part, type(part).__name__)
    last = changes.get("max_steps", 2)

    def stepped(*_: Any) -> None:
        watch.end()
        if watch.steps < last:
            watch.begin()

    register_optimizer_step_post_hook(stepped)
    with watch.watching():
        watch.begin()
        run_sft(arguments(folder, changes))
