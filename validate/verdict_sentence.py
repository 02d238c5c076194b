"""The verdict on a claim in one sentence, English or Chinese: what was found, or on what it depends."""

from __future__ import annotations

import re

from memplan.validate.chinese import in_language
from memplan.validate.claims import ClaimResult, claim_text
from memplan.validate.claimsfile import Part
from memplan.validate.numbers import amount
from memplan.validate.sweep import Boundary, PartResult

MOST_WORDS = 30
_OPENING = {
    "en": {
        "supported": "Holds",
        "refuted": "Does not hold",
        "depends": "Depends",
        "not_checkable": "Not checkable",
    },
    "zh": {"supported": "成立", "refuted": "不成立", "depends": "视条件", "not_checkable": "无法检验"},
}
_COLON, _STOP, _AND = {"en": ": ", "zh": "："}, {"en": ".", "zh": "。"}, {"en": "; ", "zh": "；"}
MOST_NAMES = 8
_COMMAND = re.compile(r"[:：]\s*memplan .*$", re.DOTALL)


def verdict_sentence(result: ClaimResult, lang: str = "en") -> str:
    """The verdict with its first reason; at most MOST_WORDS words in English."""
    opening = _OPENING[lang][result.verdict]
    deciding = [part for part in result.parts if part.part.decides]
    if result.verdict == "depends":
        body = _depends(deciding, lang)
    else:
        telling = next((part for part in deciding if part.verdict == result.verdict), deciding[0])
        body = _one(telling, lang)
    return _short(f"{opening}{_COLON[lang]}{body}", lang) + _STOP[lang]


def _label(part: Part, lang: str) -> str:
    return (part.zh if lang == "zh" else "") or part.case or part.what


def _one(result: PartResult, lang: str) -> str:
    """What was found of one part, against what was claimed."""
    label = _label(result.part, lang)
    part, found = result.part, result.found
    if result.verdict == "not_checkable" or found is None or isinstance(found, bool):
        where = result.said(lang)
        return f"{label}{_COLON[lang]}{where}" if where else f"{label}{_COLON[lang]}{_first(result, lang)}"
    value = amount(found, part.unit, None).text(in_language(lang))
    against = {"en": f", claimed {claim_text(part, 'en')}", "zh": f"，原文 {claim_text(part, 'zh')}"}[lang]
    return f"{label}{_COLON[lang]}{value}{against}"


def _first(result: PartResult, lang: str) -> str:
    """The first sentence of a part's evidence."""
    text = result.evidence.text(in_language(lang))
    return _COMMAND.sub("", text.split(_AND[lang])[0])


def _depends(deciding: list[PartResult], lang: str) -> str:
    """The first limit, or the cases that hold and those that fail."""
    yes = [_label(part.part, lang) for part in deciding if part.verdict == "supported" and part.part.case]
    no = [_label(part.part, lang) for part in deciding if part.verdict == "refuted" and part.part.case]
    open_ = next((part for part in deciding if part.boundaries and part.verdict == "depends"), None)
    if yes and no:
        words = {"en": ("holds", "fails"), "zh": ("成立：", "不成立：")}[lang]
        gap = " " if lang == "en" else ""
        return f"{words[0]}{gap}{yes[0]}{_AND[lang]}{words[1]}{gap}{no[0]}"
    if open_ is None:
        return _one(deciding[0], lang)
    limit = _limit(open_.boundaries[0], lang)
    return f"{_label(open_.part, lang)}{_COLON[lang]}{limit}"


def _limit(boundary: Boundary, lang: str) -> str:
    """A limit; of many names, how many of them hold."""
    many = len(boundary.yes) + len(boundary.no)
    if many <= MOST_NAMES:
        return boundary.said(lang)
    return {
        "en": f"holds for {len(boundary.yes)} of {many}",
        "zh": f"{many} 项中 {len(boundary.yes)} 项成立",
    }[lang]


def _short(text: str, lang: str) -> str:
    """The sentence within the words that one may have."""
    words = text.split(" ")
    if lang == "zh" or len(words) <= MOST_WORDS:
        return text
    return " ".join(words[: MOST_WORDS - 1]).rstrip(",;:") + " ..."
