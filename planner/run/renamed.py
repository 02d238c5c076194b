"""Names that transformers changes: the new one where the installed version has it, else the old one. The old
ones warn since 5.24 and are gone in 6 (`past_key_values`: in 5.40).
"""

from __future__ import annotations

from typing import Any

RENAMED = {
    "activation_checkpointing": "gradient_checkpointing",  # TrainingArguments
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",  # TrainingArguments
    "activation_checkpointing_enable": "gradient_checkpointing_enable",  # PreTrainedModel
    "is_activation_checkpointing": "is_gradient_checkpointing",  # PreTrainedModel
    "cache": "past_key_values",  # a model's output and its forward's argument
}
"""New name -> the old one (transformers 5.24 training_args.py, modeling_utils.py, modeling_outputs.py)."""


def renamed(holder: Any, name: str) -> Any:
    """The attribute that is called `name` today, under whichever of its two names `holder` has.
    AttributeError, by the old name, where it has neither.
    """
    return getattr(holder, name if hasattr(holder, name) else RENAMED[name])


def argument(name: str, legal: Any) -> str:
    """Today's `name` of an argument, or the old one where `legal`, all that the callee takes, lacks it."""
    return name if name in legal else RENAMED[name]
