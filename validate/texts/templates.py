"""The bank: templates.toml, compiled. A template is a wording, the claim that it states, and what in it is a
parameter of that claim.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from memplan.validate.claims import load
from memplan.validate.claimsfile import Claim, ClaimsFile
from memplan.validate.texts.amounts import expand

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Template:
    """One row of templates.toml; its keys are explained at the head of that file."""

    id: str
    claim: str
    needs: tuple[tuple[re.Pattern[str], ...], ...]
    reading: str
    zh: str = ""
    subject: tuple[str, ...] = ("",)
    parts: tuple[int, ...] = ()
    values: tuple[int, ...] | None = None
    model: str = ""
    settings: tuple[str, ...] = ()
    also: re.Pattern[str] | None = None
    ignores: tuple[str, ...] = ()
    context: str = ""
    less: bool = False
    free: bool = False
    hedged: bool = False
    words: str = ""
    numbers: tuple[str, ...] = ()
    tolerance: float = 0.1
    unit: str = ""
    example: str = ""
    decide: bool = False


@cache
def templates() -> tuple[Template, ...]:
    """Every template, in the file's order."""
    document = tomllib.loads((HERE / "templates.toml").read_text(encoding="utf-8"))
    return tuple(_template(table) for table in document["template"])


def _template(table: Mapping[str, Any]) -> Template:
    made = dict(table)
    made["needs"] = tuple(tuple(re.compile(expand(one)) for one in group) for group in table["needs"])
    made["model"] = {True: "optional", False: ""}.get(table.get("model", ""), table.get("model", ""))
    if "also" in table:
        longest = sorted(table["also"], key=len, reverse=True)
        made["also"] = re.compile("|".join(rf"(?<![a-z])(?:{one})(?![a-z])" for one in longest))
    for key in ("subject", "parts", "values", "settings", "ignores", "numbers"):
        if key in made:
            made[key] = tuple(made[key])
    return Template(**made)


@cache
def bank() -> dict[str, Claim]:
    """Every claim that a template may state, by id: the shipped ones, and the texts' own."""
    return {claim.id: claim for file in files() for claim in file.claims}


@cache
def files() -> tuple[ClaimsFile, ...]:
    """The two files of the bank."""
    return load(), load(HERE / "bank.toml")
