"""The Chinese of what checks say: chinese.toml, one entry an English template."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from profiler.said import Translate, english


@cache
def sentences() -> dict[str, str]:
    """Every English template and field name, with its Chinese."""
    document = tomllib.loads(Path(__file__).with_name("chinese.toml").read_text(encoding="utf-8"))
    return {**document["fields"], **document["sentences"]}


def in_language(lang: str) -> Translate:
    """What turns a template into its wording in `lang`; English where the table has none."""
    return (lambda template: sentences().get(template, template)) if lang == "zh" else english
