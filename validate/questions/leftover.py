"""What of a sentence nothing has read: the content words, and whether one of them may change the question."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from memplan.validate.questions.lexicon import CONTENT_ZH, FILLER, FILLER_ZH, NEUTRAL, NEUTRAL_ZH

_WORD = re.compile(r"[a-z][a-z0-9]*(?:[-'+][a-z0-9]+)*\+*|[\u3400-\u9fff]+")
_ZH = sorted((*FILLER_ZH, *NEUTRAL_ZH, *CONTENT_ZH), key=len, reverse=True)
_TOKEN_ZH = re.compile("|".join(re.escape(word) for word in _ZH))


@dataclass(frozen=True)
class Leftover:
    """Content words that the answer does not use; `changes` are those that may change what is asked."""

    words: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


def leftover(text: str) -> Leftover:
    """The content words of what is left of a sentence, in its order; numbers are refused elsewhere."""
    words: dict[str, bool] = {}
    for match in _WORD.finditer(text):
        run = match.group()
        for word, changes in _latin(run) if run.isascii() else _chinese(run):
            words[word] = words.get(word, False) or changes
    return Leftover(tuple(words), tuple(word for word, changes in words.items() if changes))


def _latin(word: str) -> Iterator[tuple[str, bool]]:
    whole = word in FILLER or word in NEUTRAL
    for part in [word] if whole else re.split(r"[-']", word):
        if part and part not in FILLER:
            yield part, part not in NEUTRAL


def _chinese(run: str) -> Iterator[tuple[str, bool]]:
    """Known words are taken from left to right, the longest first; what stands between them is content."""
    at = 0
    for match in _TOKEN_ZH.finditer(run):
        if match.start() > at:
            yield run[at : match.start()], True
        if match.group() not in FILLER_ZH:
            yield match.group(), match.group() not in NEUTRAL_ZH
        at = match.end()
    if at < len(run):
        yield run[at:], True
