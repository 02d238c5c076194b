"""A sentence in the form that patterns read: lower case, one kind of each sign, no markup; and its clauses."""

from __future__ import annotations

import re

from memplan.validate.vocabulary import WIDE

_MARKUP = re.compile(
    r"<[^<>]{0,200}>|[*`_]{1,3}(?=\S)|(?<=\S)[*`_]{1,3}|[“”„«»「」『』\"]|\[|\](?:\([^)]*\))?"
)
_TIMES = re.compile(r"(?<=\s)\*(?=\s)")
_SIGNS = str.maketrans(
    {"–": "-", "—": "-", "～": "-", "〜": "-", "~": "-", "−": "-", "％": "%", "／": "/", "≥": "≥", "、": "、"}
)
_CJK = r"\u3400-\u9fff"
_SPACE = re.compile(rf"(?<=[{_CJK}])\s+|\s+(?=[{_CJK}])")
_BOUND = re.compile(r"(?<!\d),|,(?!\d)|[;:()。!?]|\.(?=\s|$)|->|→|\s-{1,2}\s")


def normal(text: str) -> str:
    """The sentence without markup, in lower case, with no space beside a Chinese character."""
    plain = _TIMES.sub("×", text).translate(WIDE).translate(_SIGNS)
    plain = _MARKUP.sub("", plain).replace("×", " x ").lower()
    return _SPACE.sub("", re.sub(r"\s+", " ", plain)).strip()


def clauses(text: str) -> list[tuple[int, int]]:
    """The spans of a normal sentence between commas, brackets, colons and the like."""
    ends = [match.span() for match in _BOUND.finditer(text)]
    starts = [0, *(end for _, end in ends)]
    return [
        (start, end)
        for start, end in zip(starts, [*(begin for begin, _ in ends), len(text)], strict=True)
        if text[start:end].strip()
    ]
