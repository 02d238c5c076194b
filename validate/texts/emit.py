"""What was read of a text as a claims file (TOML), to correct by hand and hand to `memplan claims`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from memplan.validate.claimsfile import SCHEMA, Claim, Part
from memplan.validate.texts.check import Checked
from memplan.validate.texts.templates import files


def claims_toml(checked: Iterable[Checked]) -> str:
    """The claims of the sentences that were read, each with its sentence as the quote."""
    results = [result for one in checked for result in one.results]
    lines = [f"schema = {_value(SCHEMA)}"]
    used = {part.model for result in results for part in result.claim.parts}
    for file in files():
        for name, config in file.models.items():
            if name in used:
                lines += [
                    "",
                    f"[models.{name}]",
                    *(f"{key} = {_value(value)}" for key, value in config.items()),
                ]
    for result in results:
        lines += _claim(result.claim)
    if not results:
        lines += ["", "# no sentence was read"]
    return "\n".join(lines) + "\n"


def _claim(claim: Claim) -> list[str]:
    sources = [{"document": source.document, "quote": source.quote} for source in claim.sources]
    head = {"id": claim.id, "reading": claim.reading, "zh": claim.zh, "sources": sources}
    lines = ["", "[[claim]]", *(f"{key} = {_value(value)}" for key, value in head.items() if value)]
    for part in claim.parts:
        lines += ["[[claim.part]]", *(f"{key} = {_value(value)}" for key, value in _part(part).items())]
    return lines


def _part(part: Part) -> dict[str, Any]:
    """A part's keys as the file has them, without those at their defaults."""
    made: dict[str, Any] = {"what": part.what, "check": part.check, "claimed": part.claimed}
    for key in ("zh", "case", "case_zh", "unit", "model", "gpu", "engine"):
        if getattr(part, key):
            made[key] = getattr(part, key)
    if part.relation != "=":
        made["relation"] = part.relation
    if part.tolerance:
        made["tolerance"] = part.tolerance
    if not part.decides:
        made["decides"] = False
    if part.tell:
        made["tell"] = True
    if part.chosen:
        made["chosen"] = True
    if part.setup:
        made["setup"] = dict(part.setup)
    if part.over is not None:
        over: dict[str, Any] = {"key": part.over.key}
        over |= (
            {"values": part.over.values} if part.over.values else {"range": (part.over.low, part.over.high)}
        )
        made["over"] = {**over, **({"explore": part.over.explore} if part.over.explore else {})}
    return {**made, **part.args}


def _value(value: Any) -> str:
    """One TOML value: JSON's strings are TOML's, tables are written inline."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    return str(value)
