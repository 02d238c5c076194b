"""What Unsloth's command line hands to its trainer, handed to transformers' Trainer on a CPU: Unsloth's own
asks for a GPU. A model of text: its adapters take none of the words for pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perturbed_trainers import train
from perturbing import Watch, small_model

LIBRARY = "unsloth"
SECTIONS = ("data", "training", "lora", "logging")
VALUES: dict[str, Any] = {"output_dir": "other", "training.output_dir": "other"}
BESIDE: dict[str, dict[str, Any]] = {}
ARGUMENTS = {
    "learning_rate": "learning_rate",
    "max_steps": "max_steps",
    "num_epochs": "num_train_epochs",
    "random_seed": "seed",
    "save_steps": "save_steps",
    "warmup_steps": "warmup_steps",
    "weight_decay": "weight_decay",
}
"""What its trainer hands on, and under which name (2026.8 studio/backend/core/training/trainer.py)."""
READ = {
    f"{prefix}use_loftq": "unsloth 2026.8 studio/backend/core/training/trainer.py: how A and B start"
    for prefix in ("", "lora.")
} | {
    f"{prefix}packing": "unsloth 2026.8 studio/backend/core/training/trainer.py: full rows either way"
    for prefix in ("", "training.")
}
OPTIONS = {
    "config": "unsloth 2026.8 unsloth_cli/commands/train.py: names the file",
    "dry_run": "unsloth 2026.8 unsloth_cli/commands/train.py: prints the settings and ends",
}
READ |= {f"{prefix}{name}": why for prefix in ("", "lora.") for name, why in OPTIONS.items()}
"""Keys that its configuration alone does not show, and what was read."""


def prepare(folder: Path) -> None:
    """Imports what every run needs."""
    import unsloth_cli.config  # noqa: F401

    small_model(folder)


def keys() -> dict[str, Any]:
    """Every field of its sections: annotation and default."""
    from unsloth_cli.config import Config

    parts = {name: Config.model_fields[name].annotation for name in SECTIONS}
    found: dict[str, Any] = dict.fromkeys(OPTIONS, (str, None))
    for section, cls in parts.items():
        for name, field in cls.model_fields.items():
            default = field.get_default(call_default_factory=True)
            found[name] = found[f"{section}.{name}"] = (field.annotation, default)
    return found


def check(folder: Path, changes: dict[str, Any]) -> Any:
    """Its configuration with some fields changed; a word without a section is an option of the command."""
    from unsloth_cli.config import Config

    given: dict[str, Any] = {"model": "x", "data": {"dataset": "y"}}
    options = {}
    for name, value in changes.items():
        section, _, field = name.rpartition(".")
        if section:
            given.setdefault(section, {})[field] = value
        else:
            options[name] = value
    made = Config(**given)
    made.apply_overrides(**options)
    return made


def run(watch: Watch, folder: Path, changes: dict[str, Any]) -> None:
    """Two steps with some fields changed."""
    made = check(folder, changes)
    watch.say("data", made.data.model_dump())
    watch.say("logging", made.logging.model_dump())
    watch.say("training", made.training_kwargs())
    watch.say("model", made.model_kwargs(use_lora=True, is_vision=False))
    handed = made.training_kwargs()
    given = {name: handed[key] for key, name in ARGUMENTS.items()}
    train(watch, folder, {**given, "max_steps": max(2, given["max_steps"]), "save_steps": 100})
