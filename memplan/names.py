"""The command line's short names as Setup fields, for Python too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.planner.tables.errors import UsageError

SHORT = {"batch": "micro_batch", "seq": "sequence_length", "dtype": "weight_dtype"}
"""Option -> the Setup field that it sets, where they differ."""


def setup_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with short names spelled out and checkpointing as a word (True: non_reentrant, as the option
    means). Raises UsageError where one field is given twice.
    """
    found: dict[str, Any] = {}
    for name, value in fields.items():
        field = SHORT.get(name, name)
        if field in found:
            raise UsageError(f"{name} and {field} are one setting: give one of them")
        if field == "checkpointing" and isinstance(value, bool):
            value = "non_reentrant" if value else "none"
        found[field] = value
    return found
