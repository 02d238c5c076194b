"""NEW_HEADS: the linear layer that a task trains from nothing in place of the vocabulary's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class NewHead:
    """A linear layer in place of the vocabulary's, which a task trains from nothing."""

    what: str
    """The kind of transformers' class that has it."""
    classes: str
    """transformers' table of those classes (5.24 models/auto/modeling_auto.py)."""
    bias: bool
    without: tuple[str, ...]
    """Model types of the formula's families that have no such class."""
    elsewhere: tuple[str, ...] = ()
    """Model types whose class calls it `classifier`; the others' is MODULE_HEAD."""


NEW_HEADS: dict[str, NewHead] = {
    "pooled": NewHead(
        what="sequence classification",
        classes="MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
        bias=False,
        without=("cohere", "cohere2", "granite", "granitemoe", "olmoe"),
    ),
    "tokens": NewHead(
        what="token classification",
        classes="MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
        bias=True,
        without=(
            *("cohere", "cohere2", "deepseek_v2", "gemma3_text", "gptj", "granite", "granitemoe", "olmo"),
            *("olmo2", "olmo3", "olmoe", "opt", "phimoe"),
        ),
        elsewhere=("bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neox"),
    ),
}
"""Head -> the layer that a task adds; the other heads are the model's own."""

MODULE_HEAD = "score"
"""A new head's name in a decoder's class; PEFT trains a copy of it."""
