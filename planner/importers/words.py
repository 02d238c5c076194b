"""The words behind a program: its own options as a document, and the program itself where it is a script."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from memplan.planner.importers.document import read_text
from memplan.planner.importers.rules import Imported
from memplan.planner.importers.snippet import read_snippet
from memplan.planner.tables.errors import UsageError, shorten

PARSERS = ("HfArgumentParser", "TrlParser")


def read_script(path: Path, words: list[str]) -> Imported | None:
    """What the program itself says, with the words that follow it; None where its words are transformers' own
    options, or where nothing in it can be read.
    """
    source = read_text(path)
    if any(parser in source for parser in PARSERS):
        return None
    given = {key: read_word(value) for key, value in pairs(named(words)).items()}
    try:
        return read_snippet(source, path.name, given)
    except UsageError:
        if not words:
            raise
        return None


def named(words: list[str]) -> list[str]:
    """A program's own words without those that stand for themselves."""
    first = next(
        (index for index, word in enumerate(words) if word.startswith("--") or "=" in word), len(words)
    )
    return words[first:]


def read_word(value: Any) -> Any:
    """A word as Python would have it: numbers and booleans are not text."""
    if not isinstance(value, str):
        return value
    lowered = value.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    for kind in (int, float):
        try:
            return kind(value) if len(value) < 20 else value
        except ValueError:
            continue
    return value


def pairs(words: list[str]) -> dict[str, Any]:
    """--key value, --key=value, --flag, --key a b c, and key=value, as a document; later ones win."""
    found: dict[str, Any] = {}
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if not word.startswith("--"):
            key, equals, value = word.partition("=")
            if not equals:
                raise UsageError(f"'{shorten(word, 40)}' is not an option: expected --key value or key=value")
            found[key.replace("-", "_")] = value
            continue
        key, equals, value = word[2:].partition("=")
        values = [value] if equals else []
        while (
            not equals
            and index < len(words)
            and not words[index].startswith("--")
            and not re.fullmatch(r"\w+=\S*", words[index])
        ):
            values.append(words[index])
            index += 1
        key = key.replace("-", "_")
        if key.startswith("no_") and not values:
            found[key.removeprefix("no_")] = False
        else:
            found[key] = True if not values else values[0] if len(values) == 1 else values
    return found
