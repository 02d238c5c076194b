"""A regular expression as target modules, as PEFT takes one (peft 0.21 tuners/tuners_utils.py: fullmatch on a
module's path): the module names that it means. Which layers it leaves out is not followed, and said.
"""

from __future__ import annotations

import re
from typing import Any

from memplan.planner.importers.rules import bad, names
from memplan.planner.inputs.regular import regular

PROJECTIONS = {
    "self_attn": (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "qkv_proj",
        "q_a_proj",
        "q_b_proj",
        "kv_a_proj_with_mqa",
        "kv_b_proj",
    ),
    "mlp": ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2"),
}
PREFIXES = (
    "model.layers",
    "model.language_model.layers",
    "language_model.model.layers",
    "model.text_model.layers",
)
LAYERS = range(100)
_SPECIAL = re.compile(r"[()\[\]\\|*+?^$]")


def is_pattern(value: Any) -> bool:
    """Whether a value is a regular expression rather than a plain module name."""
    return isinstance(value, str) and _SPECIAL.search(value) is not None


def targets(key: str, value: Any) -> tuple[str, ...]:
    """Module names: a list, text separated by commas, or after the word `(pattern)` the names that a pattern
    matches. UsageError.
    """
    if not is_pattern(value):
        return names(key, value)
    pattern = regular(key, value, "module names, or a pattern")
    found = [
        name
        for part, projections in PROJECTIONS.items()
        for name in projections
        if _matches(pattern, part, name)
    ]
    if not found:
        raise bad(key, value, "a pattern that matches projections of the language model's layers")
    return ("(pattern)", *found)


def _matches(pattern: re.Pattern[str], part: str, name: str) -> bool:
    return any(
        pattern.fullmatch(f"{prefix}.{layer}.{part}.{name}") for prefix in PREFIXES for layer in LAYERS
    )


def settle(found: tuple[str, ...], warnings: list[str]) -> tuple[str, ...]:
    """The names without the mark, and the warning that goes with it."""
    if not found or found[0] != "(pattern)":
        return found
    warnings.append(
        f"target pattern interpreted as {', '.join(found[1:])} in every layer of the language "
        "model: other parts are not counted"
    )
    return found[1:]
