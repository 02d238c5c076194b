"""transformers' Trainer on a small Llama, on a CPU."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perturbing import BATCH, TRAINING_BESIDE, TRAINING_VALUES, Watch, small_model, watch_trainers

LIBRARY = "transformers"
BESIDE = TRAINING_BESIDE
VALUES = TRAINING_VALUES
READ = {
    "ddp_backend": "transformers 5.24 training_args.py: the collective library of several ranks",
    "do_predict": "transformers 5.24 training_args.py: read by scripts",
    "hub_always_push": "transformers 5.24 trainer.py _push_from_checkpoint",
    **dict.fromkeys(
        ("_n_gpu", "deepspeed_plugin", "distributed_state", "n_gpu"),
        "transformers 5.24 training_args.py: what it found out, in a file that it wrote; no argument",
    ),
    "transformers_version": "transformers 5.24 configuration_utils.py: which release wrote a file",
    "past_index": "transformers 4.46 trainer.py: an output that Transformer-XL returns; gone in 5",
    "local_rank": "transformers 5.24 training_args.py: which process this is",
    "push_to_hub": "transformers 5.24 trainer.py init_hf_repo: it needs a network; memory on the host",
    "resume_from_checkpoint": "transformers 5.24 trainer.py: tensors of the same size, read before a step",
    "tf32": "transformers 5.24 training_args.py: the precision of products; a CPU refuses it",
}
"""Keys that a step on a CPU cannot show, and what was read."""


def prepare(folder: Path) -> None:
    """Imports what every run needs, and writes the model."""
    import transformers.trainer  # noqa: F401

    small_model(folder)


def keys() -> dict[str, Any]:
    """Every field of TrainingArguments: annotation and default."""
    import transformers

    hints = typing.get_type_hints(transformers.TrainingArguments)
    found = {}
    for field in dataclasses.fields(transformers.TrainingArguments):
        made = field.default_factory
        found[field.name] = (hints[field.name], field.default if made is dataclasses.MISSING else made())
    return found


def common(folder: Path) -> dict[str, Any]:
    """What every run says."""
    return {
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "max_steps": 2,
        "report_to": "none",
        "per_device_train_batch_size": BATCH,
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def arguments(folder: Path, changes: dict[str, Any]) -> Any:
    """The training arguments with some changed."""
    import transformers

    return transformers.TrainingArguments(**{**common(folder), **changes})


def check(folder: Path, changes: dict[str, Any]) -> None:
    """The arguments, without a run. Raises what they raise."""
    arguments(folder, changes)


def train(
    watch: Watch, folder: Path, changes: dict[str, Any], adapt: Callable[[Any], Any] = lambda model: model
) -> None:
    """Two steps of the model that `adapt` makes, with some arguments changed."""
    import transformers

    watch_trainers(watch)
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    with watch.watching():
        transformers.Trainer(
            adapt(model),
            arguments(folder, changes),
            transformers.default_data_collator,
            train_dataset=rows,
            eval_dataset=rows[:BATCH],
        ).train()


def run(watch: Watch, folder: Path, changes: dict[str, Any]) -> None:
    """Two steps with some arguments changed."""
    train(watch, folder, changes)
