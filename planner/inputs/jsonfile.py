"""JSON that somebody wrote, read without trusting it: bounded before anything is built, numbers that can be
numbers; every way in which that fails is one message that names the file and the key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from memplan.planner.inputs.textfile import read_text
from memplan.planner.tables.errors import UsageError, shorten

MOST_BYTES = 10_000_000
MOST_NODES = 1_000_000
"""Values of one document: what this machine builds in a second and 200 MB."""
DEEPEST = 60
MOST_DIGITS = 30
"""Digits of a number: the largest size that is believed (2^60 bytes) has 19."""


class Unfit:
    """A number that no setting can have, kept until its key is known."""

    def __init__(self, what: str) -> None:
        self.what = what


def read_json(
    path: Path, most: int = MOST_BYTES, nodes: int = MOST_NODES, *, infinity: bool = True
) -> dict[str, Any]:
    """A JSON object of at most `most` bytes and `nodes` values. Raises UsageError naming the file and what is
    wrong with it. `infinity`: whether NaN and Infinity pass, as in the configs that Python's json writes.
    """
    name = shorten(str(path))
    try:
        value = parse_json(read_text(path, most), name, nodes, infinity=infinity)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise UsageError(f"'{name}' is not JSON: {error.msg} at {place}") from None
    if not isinstance(value, dict):
        raise UsageError(
            f"'{name}' holds a JSON {type(value).__name__}, expected an object with keys and values"
        )
    return value


def parse_json(
    text: str, name: str, nodes: int = MOST_NODES, *, unique: bool = False, infinity: bool = False
) -> Any:
    """The value of a JSON text. JSONDecodeError where it is none; UsageError naming the key of a number that
    is none or too long, and for a document beyond the bounds. `unique`: a key twice in one object is refused.
    """
    if text.count(",") + text.count("[") + text.count("{") > nodes:
        raise UsageError(f"'{name}' holds more than {nodes:,} values")

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(found)
        if len(table) < len(found):
            seen: set[str] = set()
            twice = next(key for key, _ in found if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise UsageError(f"'{name}' has the key '{shorten(twice)}' twice in one object: keep one")
        return table

    try:
        value = json.loads(
            text,
            object_pairs_hook=pairs if unique else None,
            parse_int=whole,
        )
        check_values(value, name, nodes, infinity=infinity)
    except RecursionError:
        raise UsageError(f"'{name}' is nested more than {DEEPEST} levels deep") from None
    return value


def whole(digits: str) -> Any:
    """An integer of at most MOST_DIGITS digits, else Unfit."""
    return int(digits) if len(digits) <= MOST_DIGITS else Unfit(f"a number of {len(digits):,} digits")


def check_values(value: Any, name: str, nodes: int = MOST_NODES, *, infinity: bool = False) -> None:
    """Refuse a document of too many values or levels, and the first number in it that no setting can have."""
    for path, item in walk(value, name, children, f"holds more than {nodes:,} values", nodes):
        what = item.what if isinstance(item, Unfit) else None
        if isinstance(item, int) and abs(item) >= 10**MOST_DIGITS:
            what = f"a number of more than {MOST_DIGITS} digits"
        elif isinstance(item, float) and not math.isfinite(item) and not infinity:
            what = str(item)
        if what is not None:
            raise unfit(name, path, what)


def unfit(name: str, path: Sequence[str], what: str) -> UsageError:
    """The error for a number that no setting can have."""
    key = shorten("".join(path).removeprefix("."))
    return UsageError(f"'{name}': {key or 'it'} is {what}: expected a number that a setting can have")


def children(item: Any) -> Iterable[tuple[str, Any]]:
    """The values inside a mapping or a list, each with its step of the path."""
    if isinstance(item, dict):
        return ((f".{key}", child) for key, child in item.items())
    return ((f"[{i}]", child) for i, child in enumerate(item)) if isinstance(item, list) else ()


def walk(
    root: Any,
    name: str,
    inside: Callable[[Any], Iterable[tuple[str, Any]]],
    too_many: str,
    nodes: int = MOST_NODES,
) -> Iterator[tuple[Sequence[str], Any]]:
    """Every value of a tree with its path, as often as it is met. UsageError beyond `nodes` or DEEPEST."""
    path: list[str] = []
    stack = [iter([("", root)])]
    count = 0
    while stack:
        step = next(stack[-1], None)
        if step is None:
            stack.pop()
            if path:
                path.pop()
            continue
        count += 1
        if count > nodes:
            raise UsageError(f"'{name}' {too_many}")
        if len(stack) > DEEPEST:
            raise UsageError(f"'{name}' is nested more than {DEEPEST} levels deep")
        yield (*path, step[0]), step[1]
        path.append(step[0])
        stack.append(iter(inside(step[1])))
