"""A known word with one letter wrong is interpreted as that word, and said so."""

from __future__ import annotations

import re

from memplan.validate.reading import Assumption, Reading
from memplan.validate.vocabulary import SPELT


def spelling(reading: Reading) -> None:
    """Mend the spelling of the words in SPELT; each is an Assumption."""
    for match in list(re.finditer(r"(?<![a-z])[a-z]{4,}", reading.text)):
        word = match.group()
        meant = next((known for known in SPELT if word not in SPELT and one_apart(word, known)), None)
        if meant:
            reading.text = re.sub(rf"(?<![a-z]){word}(?![a-z])", meant, reading.text)
            reading.found.append(Assumption("spelling", meant, word))


def one_apart(word: str, known: str) -> bool:
    """Whether one letter more, less, other, or two neighbors swapped make `word` the known one; its first
    letter must be right.
    """
    if word[0] != known[0] or abs(len(word) - len(known)) > 1 or word == known:
        return False
    at = next(
        (n for n, (a, b) in enumerate(zip(word, known, strict=False)) if a != b), min(len(word), len(known))
    )
    tails = ((word[at + 1 :], known[at + 1 :]), (word[at + 1 :], known[at:]), (word[at:], known[at + 1 :]))
    swapped = word[at : at + 2][::-1] == known[at : at + 2] and word[at + 2 :] == known[at + 2 :]
    return swapped or any(a == b for a, b in tails)
