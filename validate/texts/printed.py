"""Calculations that a text prints ("8 * (4096 + 4096) / (4096 * 4096) = 0.004"), checked as arithmetic."""

from __future__ import annotations

import re
from dataclasses import replace

from memplan.planner.tables.errors import UsageError
from memplan.validate.arithmetic import calculate
from memplan.validate.claimsfile import Claim, Source
from memplan.validate.texts.match import text_of
from memplan.validate.texts.sentences import Sentence
from memplan.validate.texts.templates import bank

_EXPRESSION = re.compile(
    r"(?<![a-z0-9_.])(?P<left>[(\d][\d.\s()x×/+*-]{2,80}[\d)])\s*(?:≈|=|等于|约等于|约为)\s*(?P<right>\d+(?:\.\d+)?)(?![\w%])"
)
_GIVEN = re.compile(r"\b[a-z]\w*(?:\s*=\s*[a-z]\w*)*\s*=\s*(\d+(?:\.\d+)?)")
_AGAIN = re.compile(r"千分之[一二三四五六七八九]|百分之[一二三四五六七八九]")
_ZH = {word: n for n, word in enumerate("一二三四五六七八九", 1)}


def printed(sentence: Sentence, name: str) -> list[Claim]:
    """The calculation of a sentence as a claim; empty where there is none, or where another number stands beside
    it that it does not use.
    """
    text = text_of(sentence)
    match = _EXPRESSION.search(text)
    if match is None or not re.search(r"[x×/+*-]", match["left"]):
        return []
    expression = re.sub(r"\s+", " ", re.sub("[x×]", "*", match["left"])).strip()
    right = float(match["right"])
    try:
        calculate(expression)
    except UsageError:
        return []
    rest = text[: match.start()] + " " + text[match.end() :]
    used = set(re.findall(r"\d+(?:\.\d+)?", expression))
    rest = _GIVEN.sub(lambda m: " " if m.group(1) in used else m.group(), rest)
    for word in _AGAIN.findall(rest):
        scale = 1000 if word[0] == "千" else 100
        if abs(_ZH[word[-1]] / scale - right) > 0.1 * right:
            return []
    if re.search(r"\d", re.sub(r"[a-z]+\d+", "", rest)):
        return []
    base = bank()["arithmetic"]
    part = replace(base.parts[0], claimed=right, args={"expression": expression})
    said = f"{expression} = {match['right']}"
    return [Claim(name, said, (Source("text", sentence.text),), (part,), said)]
