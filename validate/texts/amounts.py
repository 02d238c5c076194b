"""Amounts in a sentence, as slots of a pattern: 0.1%~1%, at least four times, 1/4, several hundred GB, 4-bit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from memplan.planner.tables.units import SIZES
from memplan.validate.claimsfile import UNITS
from memplan.validate.questions.claimed import AT_LEAST, AT_MOST, ROUGHLY, relation_of

Number = float | tuple[float, float]

_WORDS = {
    "一": 1,
    "二": 2,
    "两": 2,
    "三": 3,
    "四": 4,
    "五": 5,
    "六": 6,
    "七": 7,
    "八": 8,
    "九": 9,
    "十": 10,
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "twice": 2,
    "double": 2,
    "half": 0.5,
    "quarter": 0.25,
    "third": 1 / 3,
    "fourth": 0.25,
    "一半": 0.5,
}
_DIGITS = r"\d+(?:,\d{3})*(?:\.\d+)?"
_ZH = "[一二两三四五六七八九十]"
_EN = r"(?:one|two|three|four|five|six|seven|eight|nine|ten)"
_HOW = rf"(?P<how>(?:(?<![a-z])(?:{AT_LEAST}|{AT_MOST}|{ROUGHLY}|通常|一般|往往|仅仅?|只有?|大约|约|再|还|≈|≥|≤|>=|<=|>|<|\+|an? )\s*)*)"
_AFTER = r"(?P<after>\s*(?:以上|以下|以内|左右|上下|and up|and more|or more|or less|or so|\+))?"
_TO = r"\s*(?:-|到|至|to|and|和)\s*"
_RANGE = rf"(?P<low>{{n}})(?:\s*{{u}})?(?:{_TO}\+?(?P<high>{{n}}))?\s*"


def _slot(number: str, unit: str, before: str = "") -> str:
    spread = _RANGE.replace("{n}", number).replace("{u}", before or unit)
    return f"{_HOW}{spread}(?P<unit>{unit}){_AFTER}"


_PERCENT = r"%|percent|per cent|个百分点|个点"
SLOTS: Mapping[str, str] = {
    "share": _slot(_DIGITS, _PERCENT),
    "times": rf"{_HOW}(?P<low>{_DIGITS}|{_ZH}|{_EN}|twice|double)(?:{_TO}(?P<high>{_DIGITS}|{_ZH}|{_EN}))?[\s-]*(?P<unit>倍|x|times|fold|)(?![a-z0-9%]){_AFTER}",
    "fraction": rf"{_HOW}(?P<low>\d+/\d+|{_ZH}分之{_ZH}|(?:one[- ])?(?:quarter|half|third|fourth)|一半)(?P<high>)(?P<unit>)(?:\s*(?:of|as much))?{_AFTER}",
    "size": rf"{_HOW}(?P<low>{_DIGITS})(?:{_TO}(?P<high>{_DIGITS}))?\s*(?P<unit>gib|gb|mib|mb|tb|g|m)(?![a-z0-9]){_AFTER}",
    "vague": rf"{_HOW}(?P<low>几百|数百|上百|几十|数十|几|数|(?:several |a few |many )?hundreds? of|several hundred|a few hundred|(?:several |a few )?tens of|dozens of|a few|several|a couple of)(?P<high>)\s*(?P<unit>gib|gb|mib|mb|g|m|gigabytes|megabytes|兆)(?![a-z0-9]){_AFTER}",
    "bits": rf"{_HOW}(?P<low>{_DIGITS}|{_ZH}|four|eight|sixteen|half an?)(?P<high>)[\s-]*(?P<unit>bits?|位|比特)(?!置|数){_AFTER}",
    "count": rf"{_HOW}(?P<low>{_DIGITS})(?P<high>)(?P<unit>){_AFTER}",
    "dtype": r"(?P<dtype>bfloat16 ?\(bf16\)|16[- ]?(?:bits?|位) ?\(bf16\)|bfloat16|bf16|float16|fp16|half precision|半精度|float32|fp32|16[- ]?bits? ?(?:bfloat16|bf16)|(?:16[- ]?bits?|16位)(?:或|or|/)(?:bf16|bfloat16)|16[- ]?bits?|16位|32[- ]?bits?|32位|(?:8|4)[- ]?(?:bits?|位)|fp16/bf16|bf16/fp16|nf4|int8|fp4)",
    "number": rf"(?P<number>{_DIGITS})",
}
"""What <name> in a pattern stands for. One slot of a kind in a pattern."""

VAGUE: tuple[tuple[str, str, Number], ...] = (
    (r"百|hundred", ">=", 200.0),
    (r"十|tens|dozens", "between", (10.0, 100.0)),
    (r"几|数|few|several|couple", "between", (1.0, 10.0)),
)
"""What a vague number is read as: our choice, part of the reading that is printed."""

_DTYPES = (
    ("32", "float32"),
    ("bf16|bfloat16", "bfloat16"),
    ("nf4", "nf4"),
    ("int8|8", "int8"),
    ("fp4|4", "nf4"),
)
_UNITS = {**{unit.lower(): unit for unit in SIZES if unit != "B"}, "g": "GB", "m": "MB", "兆": "MB"}
_UNITS |= {"gigabytes": "GB", "megabytes": "MB"}


@dataclass(frozen=True)
class Amount:
    """A number or a range, in `unit` (%, x, GB, bits; empty: plain), with its relation; `about` where the text
    says so.
    """

    value: Number
    unit: str
    relation: str
    about: bool = False

    def less(self) -> Amount:
        """What is left where so much is saved."""
        one = 100.0 if self.unit == "%" else 1.0
        turned = {">=": "<=", "<=": ">=", ">": "<", "<": ">"}
        value = (
            (one - self.value[1], one - self.value[0]) if isinstance(self.value, tuple) else one - self.value
        )
        return Amount(value, self.unit, turned.get(self.relation, self.relation), self.about)

    def in_unit(self, unit: str) -> Number:
        """The value in another unit; GB and GiB are taken for each other, since texts do."""
        mixed = {self.unit, unit} <= {"GB", "GiB"} or "" in (self.unit, unit)
        factor = 1.0 if mixed else UNITS[self.unit] / UNITS[unit]
        if isinstance(self.value, tuple):
            return (_round(self.value[0] * factor), _round(self.value[1] * factor))
        return _round(self.value * factor)


def _round(value: float) -> float:
    value = float(f"{value:.12g}")
    return int(value) if value.is_integer() else value


def amount_of(match: re.Match[str]) -> Amount | None:
    """The amount that a pattern's slot holds; None where it has none."""
    groups = match.groupdict()
    if groups.get("low") is None:
        return None
    after = groups.get("after") or ""
    unit = _unit(groups.get("unit") or "", groups["low"])
    vague = next(((sign, value) for word, sign, value in VAGUE if re.search(word, groups["low"])), None)
    if vague and not re.match(r"\d", groups["low"]):
        return Amount(vague[1], unit, vague[0])
    low = _number(groups["low"])
    if groups.get("high"):
        return Amount((low, _number(groups["high"])), unit, "between")
    before = match.string[match.start() : match.start("low")]
    about = re.search(rf"(?:{ROUGHLY}|≈|左右|上下|or so)", f"{before} {after}") is not None
    signed = relation_of("", after) if after.strip() else "="
    told = signed if signed != "=" else _relation(before, after)
    return Amount(low, unit, "=" if about and signed == "=" else told, about)


def _relation(how: str, after: str) -> str:
    signs = (("≥|>=|>", ">="), ("≤|<=|<", "<="), (r"\+$|and up|and more", ">="))
    told = next((sign for word, sign in signs if re.search(word, f"{how.strip()} {after.strip()}")), None)
    return told or relation_of(how, after)


def _unit(unit: str, low: str) -> str:
    if re.fullmatch(_PERCENT, unit):
        return "%"
    if unit in ("倍", "x", "times", "fold"):
        return "x"
    if unit in ("bit", "bits", "位", "比特"):
        return "bits"
    fraction = (
        "/" in low
        or "分之" in low
        or low in ("一半",)
        or re.search("quarter|half|third|fourth|twice|double", low)
    )
    return _UNITS.get(unit, "x" if fraction else "")


def _number(text: str) -> float:
    if "分之" in text:
        below, above = text.split("分之")
        return _number(above) / _number(below)
    if "/" in text:
        above, below = text.split("/")
        return float(above) / float(below)
    words = {**_WORDS, "sixteen": 16.0}
    key = re.sub(r"^(?:one[- ])(?=quarter|half|third|fourth)|^(half) an?$", r"\1", text)
    return float(words[key]) if key in words else float(text.replace(",", ""))


def dtype_of(text: str) -> str:
    """The library's name of a format as a text has it; 16 bits are bfloat16's unless fp16 is said."""
    if re.search("fp16|float16|half|半", text) and not re.search("bf", text):
        return "float16"
    found = next(
        (name for words, name in _DTYPES if re.search(words, text) and not re.search("16", text)), None
    )
    return found or ("float32" if "32" in text else "bfloat16")


def expand(pattern: str) -> str:
    """A pattern with its <slots> and its gap ~ (words that say nothing) spelled out."""
    pattern = pattern.replace("~", GAP)
    return re.sub(r"(?<!P)<(\w+)>", lambda slot: SLOTS[slot.group(1)], pattern)


GAP = (
    r"(?:\s|的|为|是|了|也|都|就|仅|只|约|大约|通常|一般|往往|达到|到|即|可|可以|会|能|有|极低|极少|很少|(?:非常|比较)?[低少小高大]"
    r"|[,:(]|\b(?:only|is|are|was|of|the|a|an|by|to|its|it|just|about|around|roughly|typically|usually|often|merely|at|in|as|that|this|some|can|be|up|will|would|may|very|i\.e\.|e\.g\.|namely)\b)*"
)
