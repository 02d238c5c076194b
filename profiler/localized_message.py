"""A sentence and its numbers apart, so that one finding can be told in several languages: the English
template is the translation's key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Translate = Callable[[str], str]


def english(template: str) -> str:
    """The template itself: messages are written in English."""
    return template


@dataclass(frozen=True)
class LocalizedMessage:
    """`template` in English with {names}; `values` are numbers, words, other sentences, or tuples of them,
    which are listed.
    """

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def text(self, translate: Translate = english) -> str:
        """The message in the language of `translate`."""
        return translate(self.template).format(
            **{name: _shown(value, translate) for name, value in self.values.items()}
        )

    def templates(self) -> list[str]:
        """Every template that this sentence is made of: what a translation must know."""
        inner = [
            v for value in self.values.values() for v in (value if isinstance(value, tuple) else (value,))
        ]
        return [self.template, *(t for v in inner if isinstance(v, LocalizedMessage) for t in v.templates())]

    def __str__(self) -> str:
        return self.text()


def said(template: str, **values: Any) -> LocalizedMessage:
    """A message from a template and its values."""
    return LocalizedMessage(template, values)


def _shown(value: Any, translate: Translate) -> Any:
    if isinstance(value, LocalizedMessage):
        return value.text(translate)
    if isinstance(value, tuple):
        return translate("; ").join(str(_shown(one, translate)) for one in value)
    if isinstance(value, bool):
        return translate("yes" if value else "no")
    return value
