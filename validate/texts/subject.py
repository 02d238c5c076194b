"""Which method a sentence speaks of: named in it, in its table's column, or in the heading above; and its model."""

from __future__ import annotations

import re

from memplan.planner.tables.errors import UsageError
from memplan.validate.askmodel import named_models, sized_models
from memplan.validate.reading import TAKEN, B, E, Reading
from memplan.validate.texts.normal import normal
from memplan.validate.texts.sentences import Sentence
from memplan.validate.vocabulary import METHODS_SAID

PEFT = r"peft|parameter[- ]efficient(?: fine[- ]?tuning)?|参数高效(?:微调)?"
GPT_3 = re.compile(r"gpt-?3(?![.\d])")
_VAGUE = re.compile(r"[数几上]百亿(?:参数)?|(?<![a-z0-9])hundreds of billions(?: of parameters)?")
OWN_MODELS = {"gpt-3-175b": GPT_3}
"""Models of the claims file that the catalog lacks."""


def methods_in(text: str) -> list[tuple[int, str]]:
    """(place, method) of every method that a normal text names; inference is none that trains."""
    found = {}
    for pattern, method in (*METHODS_SAID, (PEFT, "peft")):
        for match in list(re.finditer(f"{B}(?:{pattern}){E}", text)):
            text = text[: match.start()] + "¦" * len(match.group()) + text[match.end() :]
            if method != "inference":
                found[match.start()] = method
    return sorted(found.items())


def method_above(sentence: Sentence) -> str:
    """The method of the column, else of the nearest heading or list item that names any; empty where that
    names several or none does.
    """
    for words in (sentence.column, *reversed(sentence.above)):
        text = normal(words)
        bare = re.sub(r"\([^()]*\)", "", text)
        for one in (bare, text):
            named = {method for _, method in methods_in(one)}
            if named:
                return named.pop() if len(named) == 1 else ""
    return ""


def take_model(reading: Reading) -> str | None:
    """The one model that is named, taken from the sentence; None where none is. Raises UsageError where several
    are, or one that the catalog lacks.
    """
    found = []
    reading.text = _VAGUE.sub(lambda match: TAKEN * len(match.group()), reading.text)
    for name, pattern in OWN_MODELS.items():
        match = pattern.search(reading.text)
        if match:
            reading.take(match)
            found.append(name)
    found += named_models(reading)
    found += sized_models(reading)
    if len(set(found)) > 1:
        raise UsageError("more than one model in the sentence")
    return found[0] if found else None


def method_of(sentence: Sentence) -> str:
    """The method that a sentence without one is about: the last named before it, else the one above."""
    earlier = methods_in(normal(sentence.before))
    return earlier[-1][1] if earlier else method_above(sentence)
