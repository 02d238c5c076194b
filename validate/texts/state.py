"""A match made into a claim: the bank's claim with the sentence's numbers, model, GPU and settings in its parts."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from memplan.planner.tables.gpus import find_gpu
from memplan.validate.claimsfile import Claim, Over, Part, Source
from memplan.validate.numbers import shown
from memplan.validate.texts.amounts import Amount
from memplan.validate.texts.match import Match
from memplan.validate.texts.templates import bank

_OF_BYTES = {"2": "bfloat16", "4": "float32"}
_SIGN = {
    "en": {">=": "at least ", "<=": "at most ", "=": "", "between": ""},
    "zh": {">=": "至少 ", "<=": "至多 ", "=": "", "between": ""},
}


def stated(match: Match, name: str, quote: str) -> Claim:
    """The claim that a match states, as a claims file would have it; `name`: its id, `quote`: the sentence."""
    template = match.template
    base = bank()[template.claim]
    chosen = template.parts or tuple(range(len(base.parts)))
    amount = match.amount.less() if match.amount is not None and template.less else match.amount
    values = set(chosen if template.values is None else template.values)
    numbers = dict(zip(chosen, template.numbers, strict=False))
    parts = []
    for index in chosen:
        if base.parts[index].check == "dry_run" and (match.model is not None or match.settings):
            continue  # it was run for the bank's own model and settings
        part = _about(base.parts[index], match)
        if index in numbers:
            part = replace(part, claimed=int(match.words[numbers[index]].replace(",", "")), relation="=")
        elif template.words:
            part = replace(part, claimed=match.words[template.words])
        elif amount is not None and index in values and not isinstance(part.claimed, bool):
            part = replace(_with_amount(part, amount, template.tolerance), chosen=False)
        if template.decide:
            part = replace(part, decides=True, tell=False)
        parts.append(part)
    names = {"amount": amount, "model": match.model or "", **match.words}
    return Claim(
        name,
        _said(template.reading, names, "en"),
        (Source("text", quote),),
        tuple(parts),
        _said(template.zh, names, "zh"),
    )


def _with_amount(part: Part, amount: Amount, tolerance: float) -> Part:
    """The part claiming the sentence's number; "about" and a plain number widen as the bank's claim does."""
    value = amount.in_unit(part.unit)
    wide = 0.0 if amount.relation != "=" else part.tolerance or (tolerance if amount.about else 0.0)
    if part.relation != "=" and amount.relation == "=" and not isinstance(value, tuple):
        if part.relation == "between" and amount.about:  # "about 0.1 %" of what runs over a range
            return replace(
                part, claimed=(value * (1 - tolerance), value * (1 + tolerance)), relation="between"
            )
        if part.relation != "between":
            return replace(part, claimed=value)  # the bank's own relation: "four times" is read as at least
    return replace(part, claimed=value, relation=amount.relation, tolerance=wide)


def _about(part: Part, match: Match) -> Part:
    """The part with the sentence's model, GPUs, format and settings."""
    words, setup = match.words, dict(part.setup) | match.settings
    if "weight_dtype" in setup and (words.get("dtype") or words.get("number")):
        setup["weight_dtype"] = words.get("dtype") or _OF_BYTES[words["number"]]
    over = part.over
    if over is not None and over.key.removeprefix("setup.") in match.settings:
        over = None
    changes: dict[str, Any] = {"setup": setup}
    if match.model is not None and part.check in ("fits", "quantity"):
        changes["model"] = match.model
        over = None if over is not None and over.key == "model" else over
    if "cards" in words:
        names = tuple(find_gpu(f"{size}GB").name for size in re.findall(r"\d+", words["cards"]))
        over = Over("gpu", values=names)
    return replace(part, over=over, **changes)


def _said(template: str, names: dict[str, Any], lang: str) -> str:
    filled = {k: amount_text(v, lang) if isinstance(v, Amount) else v for k, v in names.items()}
    return template.format(**filled)


def amount_text(amount: Amount, lang: str = "en") -> str:
    """An amount as a sentence has it: at least 4 x, 0.1 to 1 %, about 0.25 x."""
    names = {
        "x": " x" if lang == "en" else " 倍",
        "%": "%",
        "": "",
        "bits": " bits" if lang == "en" else " 位",
    }
    unit = names.get(amount.unit, f" {amount.unit}")
    about = {"en": "about ", "zh": "约 "}[lang] if amount.about else ""
    if isinstance(amount.value, tuple):
        to = " to " if lang == "en" else "~"
        return f"{shown(amount.value[0])}{to}{shown(amount.value[1])}{unit}"
    return f"{about}{_SIGN[lang].get(amount.relation, '')}{shown(amount.value)}{unit}"
