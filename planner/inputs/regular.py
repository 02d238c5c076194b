"""Regular expressions that a person wrote: compiled, or refused where matching them could take for ever."""

from __future__ import annotations

import re

from memplan.planner.tables.errors import UsageError, shown

LONGEST = 300
_NESTED = re.compile(r"[*+}]\)\s*[*+{]")
"""A repeated group that repeats inside."""


def regular(key: str, value: str, expected: str) -> re.Pattern[str]:
    """The pattern compiled. Raises UsageError naming `key` and what was `expected` for one that is too long,
    is no regular expression, or repeats a repetition.
    """
    if len(value) > LONGEST or _NESTED.search(value):
        raise UsageError(f"{key} is {shown(value)}: expected {expected} without repeated repetitions")
    try:
        return re.compile(value)
    except re.error:
        raise UsageError(f"{key} is {shown(value)}: expected {expected}, a regular expression") from None
