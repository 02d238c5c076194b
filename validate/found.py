"""What a check found: the value, in the part's unit, and the numbers that it came from."""

from __future__ import annotations

from dataclasses import dataclass

from memplan.profiler.localized_message import LocalizedMessage
from memplan.validate.numbers import Value


@dataclass(frozen=True)
class Found:
    """What a check found, in the part's unit, and the numbers it came from in words."""

    value: Value
    evidence: LocalizedMessage
