"""Values that a sentence claims ("needs 112GB", "4x the parameters", "0.1%的参数"): no GPU, and no setting."""

from __future__ import annotations

import re
from dataclasses import dataclass

from memplan.planner.tables.gpus import SOLD, find_gpu
from memplan.planner.tables.units import SIZES
from memplan.validate.reading import B, E, Reading

_WRITTEN = {unit.lower(): unit for unit in SIZES}
ABOUT = 0.10
"""How far a plain "needs X" may be off and still hold: our choice, printed beside each verdict."""


@dataclass(frozen=True)
class ClaimedValue:
    """What is claimed: `of` memory, weights, parameters or file, as an amount in `unit` (GB, GiB, MB, x, %).

    A share or a multiple is of the parameters where `against` says so, of full fine-tuning's otherwise.
    """

    value: float
    unit: str
    relation: str  # = (within ABOUT), <= or >=
    of: str
    against: str = ""
    words: str = ""


_NUMBER = r"(\d+(?:\.\d+)?)"
AT_LEAST = r"at least|more than|over|above|not less than|no less than|upwards of|不少于|至少|超过|高于|大于|起码|不低于"
AT_MOST = r"at most|only|just|merely|less than|under|below|no more than|up to|as little as|仅仅?|只|不到|不超过|低于|最多|小于"
ROUGHLY = r"about|around|roughly|approximately|some|exactly|大约|大概|约|差不多|将近|近"
_NEEDS = (
    r"(?:would |will )?(?:needs?|takes?(?: up)?|uses|requires?|occup(?:y|ies)|consumes?|costs?|should (?:be|need|take))"
    r"|仅需要?|只需要?|需要?|占用?|只要|仅要|就要|得要|要|消耗|达到|(?:显存|占用|需求)(?:通常|一般|大约|大概)*(?:是|为)|(?:memory|vram|footprint) is"
)
_MEMORY = r"(?:\s*(?:of )?(?:gpu |video )?(?:memory|vram|ram)|\s*的?显存)?"
_ON_A_CARD = r"(?!\s*(?:of )?(?:vram |memory )?(?:-class )?(?:cards?|gpus?)|\s*的?(?:显卡|卡|gpu))"
_AMOUNT = re.compile(
    rf"{B}(?P<needs>{_NEEDS})\s*(?P<how>(?:(?:{AT_LEAST}|{AT_MOST}|{ROUGHLY})\s*)*){_NUMBER}\s*(?P<unit>gib|gb|mib|mb|g){E}{_ON_A_CARD}{_MEMORY}"
    r"(?P<after>\s*(?:以上|以下|以内|左右|or more|or less))?"
)
_TIMES = re.compile(
    rf"(?P<how>(?:(?:{AT_LEAST}|{AT_MOST}|{ROUGHLY})\s*)*)(?:参数(?:量)?|模型大小|模型)的?\s*{_NUMBER}\s*(?P<unit>倍)(?P<after>以上|以下|左右)?"
    rf"|(?P<how2>(?:(?:{AT_LEAST}|{AT_MOST}|{ROUGHLY})\s*)*){_NUMBER}\s*(?P<unit2>x|times)\s*(?:as many as |as much as )?(?:the |its )?"
    r"(?:parameters?|params|model size|model|weights)"
)
_SHARE = re.compile(
    rf"(?P<how>(?:(?:{AT_LEAST}|只要|仅需要?|只需要?|只有|仅有|{AT_MOST}|{ROUGHLY})\s*)*){_NUMBER}\s*(?P<unit>%)(?P<of>\s*(?:的|of (?:the |its |all )?)?(?:参数|parameters?|params|weights|显存|memory|vram))?"
)
NOT_MORE = r"不超过|不高于|不大于|不多于|(?:no|not) (?:more than|over|above)|not exceed\w*"
"""Said with a word for more, and means at most: looked for first."""
_RELATIONS = (
    (NOT_MORE, "<="),
    (AT_LEAST + r"|以上|or more", ">="),
    (AT_MOST + r"|以下|以内|or less|仅需|只需|只要|仅要", "<="),
)

WEIGHTS_ALONE = (
    r"量化后|权重(?:本身)?(?:大约|约)?(?:仅|只|占|需|要|为|是|有)|加载|quantized (?:model|weights|base)|when quantized|loading|to load"
    r"|(?<!bf16 )(?<!fp16 )(?<!fp32 )weights (?:alone |only |themselves )?(?:needs?|takes?|are|occup\w+|uses?|requires?)|checkpoint (?:is|takes|needs)"
)
"""Wordings in which an amount is of the weights, not of a training run."""


def claims_of(reading: Reading, weights: bool) -> tuple[ClaimedValue, ...]:
    """Every value that the sentence claims; its words are taken. `weights`: an amount is of the weights."""
    found = [*_shares(reading), *_multiples(reading)]
    for match in list(_AMOUNT.finditer(reading.text)):
        relation = relation_of(f"{match['needs']} {match['how']}", match["after"])
        value, unit = (
            float(match[3]),
            _WRITTEN[match["unit"].removesuffix("b") + "b"],
        )
        if relation == "<=" and not weights and _sold(value, unit):
            continue  # "only needs 48GB": whether it fits on such a GPU
        of = "weights" if weights else "memory"
        found.append(ClaimedValue(value, unit, relation, of, words=reading.take(match)))
    return tuple(found)


def _sold(value: float, unit: str) -> bool:
    return unit == "GB" and value >= 1 and find_gpu(f"{value:g}GB").kind == SOLD


def relation_of(before: str | None, after: str | None) -> str:
    """The relation that the words before and after an amount state: =, <=, >=, < or >."""
    text = f"{before or ''} {after or ''}"
    return next((sign for words, sign in _RELATIONS if re.search(words, text)), "=")


def _multiples(reading: Reading) -> list[ClaimedValue]:
    found = []
    for match in list(_TIMES.finditer(reading.text)):
        value = float(match[2] or match[6])
        relation = relation_of(match["how"] or match["how2"], match["after"])
        found.append(ClaimedValue(value, "x", relation, "memory", "parameters", reading.take(match)))
    return found


def _shares(reading: Reading) -> list[ClaimedValue]:
    found = []
    for match in list(_SHARE.finditer(reading.text)):
        of = match["of"] or ""
        before = reading.text[: match.start()]
        memory = re.search("显存|memory|vram", of) or (not of and re.search("显存|memory|vram", before))
        parameters = re.search("参数|param|weights", of)
        if not memory and not parameters:
            continue  # of what, is not said: refused as a number that nothing read
        kind = "parameters" if parameters else "memory_share"
        found.append(
            ClaimedValue(
                float(match[2]), "%", relation_of(match["how"], None), kind, words=reading.take(match)
            )
        )
    return found
