"""A sentence while it is read: what is left of it, and what was understood so far."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Assumption:
    """One thing that the answer rests on: the field, its value, and the words that said so (empty: a
    default).
    """

    name: str
    value: str
    words: str = ""
    zh: str = ""  # the value in Chinese, where it is a sentence


@dataclass
class Reading:
    """A sentence while it is read: what is left of it, and what was understood so far."""

    text: str
    found: list[Assumption] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)

    def take(self, match: re.Match[str]) -> str:
        """The matched words, blanked out so that nothing is read twice."""
        words = match.group().strip()
        self.text = self.text[: match.start()] + TAKEN * len(match.group()) + self.text[match.end() :]
        return words

    def say(self, name: str, value: Any, words: str, zh: str = "") -> None:
        """Note that these words set a field to a value."""
        self.fields[name] = value
        shown = (
            "+".join(value)
            if isinstance(value, tuple)
            else f"{value:,}"
            if isinstance(value, int)
            else str(value)
        )
        self.found.append(Assumption(name, shown, words, zh))


TAKEN = "¦"  # no space, so that what stood apart is not read as neighbors
_ZH = r"[\u3400-\u9fff]"  # Chinese has no word boundaries: only Latin letters and digits bound a word
B = rf"(?:(?<![a-z0-9.])|(?={_ZH}))"
E = rf"(?:(?![a-z0-9])|(?<={_ZH}))"
