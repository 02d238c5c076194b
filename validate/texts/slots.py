"""What may stand between braces in a wording of statements.toml: numbers with their relation, models, formats,
ranks, modules, GPUs. Each has a pattern, and what a text that it matches means.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from memplan.planner.inputs.models import from_catalog, names
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import find_gpu
from memplan.validate.questions.claimed import AT_LEAST, AT_MOST, ROUGHLY
from memplan.validate.reading import Reading
from memplan.validate.texts.amounts import SLOTS, Amount, amount_of, dtype_of
from memplan.validate.texts.subject import take_model

_N = r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_HOW = rf"(?P<how>(?:(?:(?<![a-z])(?:{AT_LEAST}|{AT_MOST}|{ROUGHLY}|between|from|another|an extra)(?![a-z])|大约|约|[≈~≥≤])\s*)*)"
_AFTER = r"(?P<after>\s*(?:以上|以下|以内|左右|上下|or more|or less|or so))?"
_SPREAD = rf"(?P<low>{_N})(?:\s*{{u}})?(?:\s*(?:-|到|至|to|and)\s*(?P<high>{_N}))?\s*"

IDIOMS: tuple[tuple[str, str], ...] = (
    (
        r"\b(?:just|a little|slightly|a bit|barely) (?:under|over|below|above|more than|less than|shy of)\b",
        "about",
    ),
    (
        r"\b(?:almost|nearly|close to|closer to|somewhere|on the order of)\b|接近|将近|略[多高大低少小]于|略不足",
        "about",
    ),
    (r"\b(?:well|far|comfortably) (?:under|below)\b", "under"),
    (r"不足|少于", "不到"),
)
"""Words around a number that the patterns of numbers lack, and what they are read as."""
_ABOUT_BEFORE = re.compile(r"(大约|约)(为|是|需要?|占用?|有|要|达到?)")
"""约为 X is 为约 X."""
_SCALES = (("million", 1e6), ("billion", 1e9), ("thousand", 1e3), ("千万", 1e7), ("万", 1e4), ("亿", 1e8))
_SCALED = re.compile(
    rf"(?<![a-z0-9_.-])(\d+(?:,\d{{3}})*(?:\.\d+)?) ?({'|'.join(word for word, _ in _SCALES)})(?![级亿a-z])"
)


def plain(text: str) -> str:
    """A normal text with idioms around numbers made plain and counts written out: 6.74 billion, 419万."""
    for words, said in IDIOMS:
        text = re.sub(words, said, text)
    text = _ABOUT_BEFORE.sub(r"\2\1", text)
    scale = dict(_SCALES)
    return _SCALED.sub(lambda m: f"{round(float(m[1].replace(',', '')) * scale[m[2]])}", text)


@dataclass(frozen=True)
class Stated:
    """An amount of a text. `rounding`: half a unit of its last digit over the number, by which what is right may
    be off.
    """

    amount: Amount
    rounding: float


def _amount(match: re.Match[str]) -> Stated | None:
    amount = amount_of(match)
    if amount is None:
        return None
    groups = match.groupdict()
    digits = groups["low"].replace(",", "")
    if not re.fullmatch(r"\d+(?:\.\d+)?", digits):
        return Stated(amount, 0.0)
    last = 10.0 ** -len(digits.partition(".")[2])
    shown = digits.replace(".", "").lstrip("0")
    zeros = max(0, min(len(digits) - len(digits.rstrip("0")), len(digits) - 2)) if "." not in digits else 0
    last *= 10.0**zeros if len(shown) > 1 else 0.1  # two digits count at least: 3 GB are 3.0
    return Stated(amount, 0.5 * last / float(digits) if float(digits) else 0.0)


def _model(match: re.Match[str]) -> str | None:
    """The catalog's name; None where it has none."""
    reading = Reading(re.sub(r" (?=\d)", "-", match.group("name")))
    try:
        return take_model(reading)
    except UsageError:
        return None


def _family(match: re.Match[str]) -> str | None:
    """The smallest model of a family whose models have one vocabulary; None where they differ."""
    stem = match.group("name").replace(" ", "-")
    found = [
        m
        for name in names()
        if re.fullmatch(rf"{re.escape(stem)}-[\d.]+b", name) and (m := from_catalog(name))
    ]
    sizes = {model.config["vocab_size"] for model in found}
    by_size = sorted(found, key=lambda model: float(str(model.name).rsplit("-", 1)[1][:-1]))
    return str(by_size[0].name) if len(sizes) == 1 else None


def _gpu(match: re.Match[str]) -> str | None:
    name = re.sub(r"[\s的]+", "-", match.group("name").strip())
    size = match.group("size") or match.group("size2")
    ways = [f"{name}-{size}gb", name] if size else [name]
    for way in (*ways, *(f"rtx-{way}" for way in ways)):
        try:
            found = find_gpu(way)
        except UsageError:
            continue
        if size is None or round(found.usable_bytes / 1e9) in range(int(size) - 3, int(size) + 8):
            return str(found.name)
    return None


_BYTES = {"one": 1, "two": 2, "four": 4, "eight": 8, "sixteen": 16}
_FAMILIES = r"tinyllama|code-?llama|llama|qwen|mistral|gemma|phi|falcon|opt|yi|smollm|vicuna"
_METHODS = {"full": "full", "全": "full", "qlora": "qlora", "lora": "lora"}

TARGETS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"(?:all|every|each|the seven|all seven|全部|所有|七个|各)(?: of the)? ?(?:linear (?:layers?|modules?|projections?)|线性(?:层|模块))",
        ("all-linear",),
    ),
    (
        r"(?:the )?(?:query and value|q and v|q ?/ ?v|q_?proj(?: and |, ?|/|和)v_?proj|q[、和与]v|q, ?v)(?: ?(?:projections?|matrices|layers?|modules?|weights|投影|矩阵|模块|层)(?:矩阵|层)?)?",
        ("q_proj", "v_proj"),
    ),
    (
        r"(?:the )?(?:q, ?k, ?v,? ?(?:and )?o|q、k、v[、和]o|(?:all )?four attention (?:projections?|matrices|layers?))(?: ?(?:projections?|matrices|投影|矩阵|层))?",
        ("q_proj", "k_proj", "v_proj", "o_proj"),
    ),
)


def _targets(match: re.Match[str]) -> tuple[str, ...]:
    return next(modules for words, modules in TARGETS if re.fullmatch(words, match.group()))


def _integer(text: str) -> int:
    number = text.replace(",", "")
    return int(number[:-1]) * 1024 if number.endswith("k") else int(number)


_INT = r"(?:\d{1,3}(?:,\d{3})+|\d+)k?"
_SIZE = r"(?P<unit>gib|gb|mib|mb|kib|kb|tib|tb)(?![a-z0-9])"

KINDS: Mapping[str, tuple[str, Callable[[re.Match[str]], Any]]] = {
    "int": (_INT, lambda m: _integer(m.group())),
    "count": (rf"{_HOW}{_SPREAD.replace('{u}', '')}(?P<unit>)(?!\d|\.\d){_AFTER}", _amount),
    "size": (rf"{_HOW}{_SPREAD.replace('{u}', _SIZE.replace('?P<unit>', '?:'))}{_SIZE}{_AFTER}", _amount),
    "vague": (SLOTS["vague"], _amount),
    "share": (rf"{_HOW}{_SPREAD.replace('{u}', '%')}(?P<unit>%|percent|per cent){_AFTER}", _amount),
    "times": (SLOTS["times"], _amount),
    "fraction": (SLOTS["fraction"], _amount),
    "bits": (SLOTS["bits"], _amount),
    "bytes": (
        rf"{_HOW}(?P<number>\d+(?:\.\d+)?|one|two|four|eight|sixteen)(?: ?-?(?:bytes?|字节))?",
        lambda m: float(_BYTES.get(m.group("number"), 0) or m.group("number")),
    ),
    "dtype": (SLOTS["dtype"].replace("?P<dtype>", "?:"), lambda m: dtype_of(m.group())),
    "model": (
        rf"(?P<name>(?:(?<![a-z0-9.-])(?:{_FAMILIES})[a-z]{{0,2}}(?:[- ]?\d+(?:\.\d+)?)?[- ]?)?(?<![a-z0-9])(?<!\d\.)(?<![a-z]-)\d+(?:\.\d+)?b|(?<![a-z0-9.-])(?:{_FAMILIES})[a-z]{{0,2}}(?:\d+(?:\.\d+)?)?-(?:\d+(?:\.\d+)?-)?\d+(?:\.\d+)?b)(?![a-z0-9])(?: ?(?:model|模型))?(?:'s)?",
        _model,
    ),
    "family": (rf"(?<![a-z0-9.-])(?P<name>(?:{_FAMILIES})[- ]?\d+(?:\.\d+)?)(?![\d.a-z]|-\d)", _family),
    "rank": (
        rf"(?:a )?(?:lora )?(?:rank|秩)(?: of| is)?[ =为是取-]*(?P<n>{_INT})|(?<![a-z])r ?[=为是取] ?(?P<m>{_INT})",
        lambda m: _integer(m.group("n") or m.group("m")),
    ),
    "targets": ("|".join(words for words, _ in TARGETS), _targets),
    "sequence": (
        rf"(?:a |one )?(?P<n>{_INT})[- ]?(?:个 ?)?tokens?(?: (?:sequences?|context|each))?|(?:a )?(?:sequence|context)(?: length)?s?(?: of| is| =)? ?(?P<m>{_INT})(?: tokens?)?|(?:序列|上下文)(?:长度?)?(?:为|是|取)? ?(?P<k>{_INT})(?: ?(?:个)?token)?|长(?:度)?(?:为)?(?P<j>{_INT})的序列",
        lambda m: _integer(next(g for g in m.groups() if g)),
    ),
    "batch": (
        rf"(?:micro-?)?batch(?: size)?(?: of| is|=)? ?(?P<n>{_INT})|批(?:次)?(?:大小)?(?:为|是|取|=)? ?(?P<m>{_INT})",
        lambda m: _integer(m.group("n") or m.group("m")),
    ),
    "gpu": (
        r"(?:(?P<size>\d+) ?gb(?:的)? ?)?(?:nvidia )?(?P<name>(?:rtx ?)?(?:3090|4090|5090)|rtx ?a6000|a6000|a100|h100|h200|b200|l40s|a10g|t4|l4|v100)(?:[ -]?(?P<size2>\d+) ?gb?)?(?![a-z0-9])",
        _gpu,
    ),
    "method": (
        r"(?:全(?:参数?|量)|full(?: |-parameter )?)(?:微调|fine-?tun(?:e|ing))|q-?lora|lora",
        lambda m: next(v for k, v in _METHODS.items() if m.group().replace("-", "").startswith(k)),
    ),
}
"""Slot -> its pattern, and its value from what it matched; None: it means nothing that is known."""

_SLOT = re.compile(r"{(\w+?)(?::(\w+))?}")


@cache
def compiled(wording: str, macros: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    """A wording as a pattern, one group a slot, and the slot of each group."""
    kinds: dict[str, str] = {}
    for name, words in macros:
        wording = wording.replace(f"<{name}>", words)

    def opened(match: re.Match[str]) -> str:
        kind, name = match[1], match[2] or match[1]
        kinds[name] = kind
        return f"(?P<{name}>{re.sub(r'[?]P<[a-z0-9]+>', '?:', KINDS[kind][0])})"

    return re.compile(_SLOT.sub(opened, wording)), kinds


def value_of(kind: str, text: str) -> Any:
    """What a slot's text means; None where that is not known."""
    pattern, meant = KINDS[kind]
    match = re.fullmatch(pattern, text) or re.fullmatch(pattern, text.strip())
    return None if match is None else meant(match)
