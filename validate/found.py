"""What a check found: the value, in the part's unit, and the numbers that it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from memplan.profiler.localized_message import LocalizedMessage
from memplan.validate.numbers import Value


@dataclass(frozen=True)
class Found:
    """What a check found, in the part's unit, and the numbers it came from in words; `told`: those words, or
    what finds them where they are asked for, which may take longer than the value did.
    """

    value: Value
    told: LocalizedMessage | Callable[[], LocalizedMessage]

    @cached_property
    def evidence(self) -> LocalizedMessage:
        """The numbers that the value came from, in words."""
        return self.told if isinstance(self.told, LocalizedMessage) else self.told()
