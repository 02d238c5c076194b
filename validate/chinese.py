"""The Chinese of what checks and predictions say: chinese.toml, one entry an English template."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from memplan.profiler.localized_message import Translate, english


@cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("chinese.toml").read_text(encoding="utf-8"))


@cache
def sentences() -> dict[str, str]:
    """Every English template and field name, with its Chinese."""
    return {**_tables()["fields"], **_tables()["sentences"]}


def in_language(lang: str) -> Translate:
    """What turns a template into its wording in `lang`; English where the table has none."""
    return (lambda template: sentences().get(template, template)) if lang == "zh" else english


@cache
def warnings() -> dict[str, str]:
    """Every warning of a prediction, as an English template, with its Chinese."""
    return dict(_tables()["warnings"])


@cache
def _forms() -> tuple[tuple[re.Pattern[str], str], ...]:
    named = (
        (re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(template)), chinese)
        for template, chinese in warnings().items()
    )
    return tuple((re.compile(form, re.DOTALL), chinese) for form, chinese in named)


def warning_in(lang: str, warning: str) -> str:
    """A prediction's warning, which is whole text by now, in `lang`: the template that it was made of is
    found again, its numbers kept.
    """
    if lang != "zh":
        return warning
    found = ((form.fullmatch(warning), chinese) for form, chinese in _forms())
    return next((chinese.format(**match.groupdict()) for match, chinese in found if match), warning)
