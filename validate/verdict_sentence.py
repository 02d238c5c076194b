"""The verdict on a claim in one sentence, English or Chinese: what was found, or on what it depends."""

from __future__ import annotations

import re

from memplan.validate.chinese import in_language
from memplan.validate.claims import ClaimResult, claim_text, label_of
from memplan.validate.numbers import amount
from memplan.validate.sweep import Boundary, PartResult

MOST_WORDS = 30
MOST_SIGNS = 100
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
    """The verdict with its first reason; at most MOST_WORDS words in English, MOST_SIGNS signs in Chinese."""
    opening = _OPENING[lang][result.verdict]
    deciding = [part for part in result.parts if part.part.decides]
    if result.verdict == "depends":
        bodies = _depends(deciding, lang)
    else:
        telling = next((part for part in deciding if part.verdict == result.verdict), deciding[0])
        bodies = _one(telling, lang)
    sentences = [f"{opening}{_COLON[lang]}{body}{_STOP[lang]}" for body in bodies]
    return next((one for one in sentences if _short(one, lang)), sentences[-1])


def _one(result: PartResult, lang: str) -> list[str]:
    """What was found of one part, against what was claimed; shorter wordings behind."""
    label = label_of(result.part, lang)
    part = result.part
    if result.verdict == "not_checkable" or (result.found is None and result.spread is None):
        return _told(result, lang)
    if isinstance(result.found, bool):
        return _told(result, lang)
    value = _found(result, lang)
    claim = claim_text(part, lang)
    gap = " " if claim[0].isascii() else ""
    ours = {"en": f"; interpreted as {claim}", "zh": f"，按{gap}{claim}理解"}
    texts = {"en": f"; the text says {claim}", "zh": f"，原文为{gap}{claim}"}
    against = (ours if part.chosen else texts)[lang]
    return [f"{label}{_COLON[lang]}{value}{against}", f"{label}{_COLON[lang]}{value}", f"{value}{against}"]


def _found(result: PartResult, lang: str) -> str:
    """The value that was found, or the least and the most of several."""
    unit, translate = result.part.unit, in_language(lang)
    if result.found is not None:
        return amount(result.found, unit).text(translate)
    assert result.spread is not None
    low, high = (amount(n, unit).text(translate) for n in result.spread)
    return f"{low}{' to ' if lang == 'en' else ' 到 '}{high}"


def _told(result: PartResult, lang: str) -> list[str]:
    """A part that found no number: its limit, or the first sentence of its evidence."""
    label = label_of(result.part, lang)
    where = result.said(lang) or _first(result, lang)
    if result.part.claimed is False and not result.part.case:
        label = {"en": f"the text denies “{label}”", "zh": f"原文否认“{label}”"}[lang]
    return [f"{label}{_COLON[lang]}{where}", where, label]


def _first(result: PartResult, lang: str) -> str:
    """The first sentence of a part's evidence."""
    text = result.evidence.text(in_language(lang))
    return _COMMAND.sub("", text.split(_AND[lang])[0])


def _depends(deciding: list[PartResult], lang: str) -> list[str]:
    """The first limit, or the cases that hold and those that fail."""
    yes = [label_of(part.part, lang) for part in deciding if part.verdict == "supported" and part.part.case]
    no = [label_of(part.part, lang) for part in deciding if part.verdict == "refuted" and part.part.case]
    open_ = next((part for part in deciding if part.boundaries and part.verdict == "depends"), None)
    if yes and no:
        both = {
            "en": f"true of “{yes[0]}”, false of “{no[0]}”",
            "zh": f"“{yes[0]}”成立，“{no[0]}”不成立",
        }[lang]
        return [both, {"en": f"false of “{no[0]}”", "zh": f"“{no[0]}”不成立"}[lang]]
    if open_ is None:
        return _one(deciding[0], lang)
    label = label_of(open_.part, lang)
    limits = (limit(open_.boundaries[0], lang, most) for most in (MOST_NAMES, 0))
    return [f"{label}{_COLON[lang]}{limit}" for limit in limits]


def limit(boundary: Boundary, lang: str, most: int) -> str:
    """A limit; of more than `most` names, how many of them hold."""
    many = len(boundary.yes) + len(boundary.no)
    if not many or many <= most:
        return boundary.said(lang)
    return {
        "en": f"holds for {len(boundary.yes)} of {many}",
        "zh": f"{many} 项中 {len(boundary.yes)} 项成立",
    }[lang]


def _short(text: str, lang: str) -> bool:
    """Whether a sentence keeps within what one may have."""
    return len(text) <= MOST_SIGNS if lang == "zh" else len(text.split()) <= MOST_WORDS
