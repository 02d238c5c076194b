"""TRL's SFTTrainer on a small Llama, on a CPU: what SFTConfig has beside transformers' arguments."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from perturbed_trainers import common
from perturbing import TOKENS, Watch, rows_in_this_process, small_model, watch_trainers

LIBRARY = "trl"
VALUES: dict[str, Any] = {
    "dataset_kwargs": {"add_special_tokens": False},
    "eos_token": "w5",
    "pad_token": "w5",
    "dataset_text_field": "other",
    "truncation_mode": "keep_end",
}
BESIDE: dict[str, dict[str, Any]] = {}
_SCRIPT = "trl 1.16 scripts/sft.py, before the trainer"
READ = {
    "assistant_only_loss": "trl 1.16 trainer/sft_trainer.py: which labels are -100; it wants conversations",
    "chat_template_path": "trl 1.16 trainer/sft_trainer.py: reads a template's file",
    "completion_only_loss": "trl 1.16 trainer/sft_trainer.py: which labels are -100; it wants prompts",
    "ignore_bias_buffers": "trl 1.16 scripts/sft.py: buffers of booleans that DDP leaves alone",
    "lora_task_type": "trl 1.16 trainer/model_config.py: the adapter's class",
    "router_aux_loss_coef": "trl 1.16 trainer/sft_trainer.py: a factor; refused of a dense model",
    **dict.fromkeys(
        (
            "dataset_config",
            "dataset_name",
            "dataset_streaming",
            "dataset_test_split",
            "dataset_train_split",
            "model_revision",
            "trust_remote_code",
        ),
        _SCRIPT,
    ),
}
"""Keys that a step cannot show, and what was read."""


def prepare(folder: Path) -> None:
    """Imports what every run needs, and writes the model and sentences."""
    import trl

    assert trl.SFTTrainer
    rows_in_this_process()
    small_model(folder)
    words = " ".join(f"w{i}" for i in range(3, 3 + 2 * TOKENS))
    rows = [json.dumps({"text": words, "other": words}) + "\n" for _ in range(16)]
    (folder / "words.jsonl").write_text("".join(rows), encoding="utf-8")


def keys() -> dict[str, Any]:
    """Every field of SFTConfig, ModelConfig and ScriptArguments that TrainingArguments lacks."""
    import transformers
    import trl

    theirs = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    found = {}
    for cls in (trl.ScriptArguments, trl.ModelConfig, trl.SFTConfig):
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            if field.name not in theirs:
                found[field.name] = (hints[field.name], default)
    return found


def check(folder: Path, changes: dict[str, Any]) -> Any:
    """The trainer's configuration with some fields changed. Raises what it raises."""
    import trl

    return trl.SFTConfig(**{**common(folder), "max_length": TOKENS, **changes})


def run(watch: Watch, folder: Path, changes: dict[str, Any]) -> None:
    """Two steps with some fields changed."""
    import transformers
    import trl
    from datasets import Dataset

    watch_trainers(watch)
    lines = (folder / "words.jsonl").read_text(encoding="utf-8").splitlines()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    with watch.watching():
        trl.SFTTrainer(
            model,
            check(folder, changes),
            train_dataset=Dataset.from_list([json.loads(line) for line in lines]),
            processing_class=transformers.AutoTokenizer.from_pretrained(folder / "model"),
        ).train()
