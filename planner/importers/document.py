"""Reading somebody's YAML or JSON without trusting it: bounded in size and depth, no tags, no repeated keys,
nothing echoed.

A configuration file may hold tokens and passwords, so an error names the place and the problem, never the
text found there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from memplan.planner.tables.errors import UsageError, shorten

LARGEST_FILE = 4 * 2**20
MOST_NODES = 200_000
DEEPEST = 60


def read_text(path: Path) -> str:
    """The text of a configuration file. UsageError where it is missing, larger than 4 MiB, or not UTF-8."""
    name = shorten(str(path))
    try:
        if not path.is_file():
            raise UsageError(f"'{name}' is not a file")
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise UsageError(
                f"'{name}' has {size:,} bytes: a configuration file has at most {LARGEST_FILE:,}"
            )
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"'{name}' is not text: byte {error.start} is not UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UsageError(f"cannot read '{name}': {reason}") from None


def parse(text: str, name: str) -> Any:
    """The value of a JSON or YAML text. UsageError naming the place of whatever is wrong, never its
    content.
    """
    try:
        looks_like_json = text.lstrip()[:1] in ("{", "[")
        if looks_like_json:
            try:
                value = _parse_json(text, name)
            except json.JSONDecodeError as error:
                if not name.endswith((".yaml", ".yml")):
                    place = f"line {error.lineno} column {error.colno}"
                    raise UsageError(f"'{shorten(name)}' is not valid JSON: {error.msg}, {place}") from None
                value = _parse_yaml(text, name)  # YAML may start with a brace too
        else:
            value = _parse_yaml(text, name)
        _bounded(value, name)
        return value
    except RecursionError:
        raise UsageError(f"'{shorten(name)}' is nested more than {DEEPEST} levels deep") from None


def _parse_json(text: str, name: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in pairs:
            if key in table:
                raise UsageError(
                    f"'{shorten(name)}' has the key '{shorten(key, 40)}' twice in one object: keep one"
                )
            table[key] = value
        return table

    def constant(word: str) -> Any:
        raise UsageError(f"'{shorten(name)}' holds {word}, which is not a number that a setting can have")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer of thousands of digits
        raise UsageError(f"'{shorten(name)}' holds a number with too many digits") from None


def _parse_yaml(text: str, name: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML's own plain types: a tag is refused where it stands."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            if getattr(event, "tag", None) and not isinstance(event, yaml.AliasEvent):
                raise _Refused("a tag", event.start_mark)
            return super().compose_node(parent, index)

    try:
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _bounded_nodes(node, name)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except _Refused as refusal:
        raise UsageError(f"'{shorten(name)}' has {refusal} (line {refusal.line}): plain YAML only") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(
            f"'{shorten(name)}' is not valid YAML{line}: {_without_content(error.problem)}"
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UsageError(f"'{shorten(name)}' is not valid YAML: {type(error).__name__}") from None


def _without_content(problem: str | None) -> str:
    """A parser's complaint without the words that it quotes from the file."""
    return shorten(re.sub(r"'[^']{4,}'", "'...'", problem or "cannot be read"))


class _Refused(Exception):
    """YAML that is legal but not wanted: `line` says where."""

    def __init__(self, what: str, mark: Any) -> None:
        super().__init__(what)
        self.line = mark.line + 1


def _check_keys(node: Any) -> None:
    """Refuse a mapping node with a repeated key, or one that is not a plain scalar."""
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key.value, str):
            raise _Refused("a key that is a list or a mapping", key.start_mark)
        if key.value in seen:
            raise _Refused(f"the key '{shorten(key.value, 40)}' twice", key.start_mark)
        seen.add(key.value)


def _bounded_nodes(root: Any, name: str) -> None:
    """Refuse, before anything is built, a YAML tree that expands beyond the bounds or contains itself."""

    def inside(node: Any) -> Iterator[Any]:
        if isinstance(node.value, list):
            if node.value and isinstance(node.value[0], tuple):
                _check_keys(node)
            for item in node.value:
                yield from item if isinstance(item, tuple) else (item,)

    _walk(
        root,
        name,
        inside,
        f"expands to more than {MOST_NODES:,} values: anchors may not multiply without end",
    )


def _bounded(value: Any, name: str) -> None:
    """Refuse a JSON document beyond the bounds."""

    def inside(item: Any) -> Iterable[Any]:
        return item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()

    _walk(value, name, inside, f"holds more than {MOST_NODES:,} values")


def _walk(root: Any, name: str, inside: Callable[[Any], Iterable[Any]], too_many: str) -> None:
    count, stack = 0, [(root, 0)]
    while stack:
        item, depth = stack.pop()
        count += 1
        if count > MOST_NODES:
            raise UsageError(f"'{shorten(name)}' {too_many}")
        if depth > DEEPEST:
            raise UsageError(f"'{shorten(name)}' is nested more than {DEEPEST} levels deep")
        stack += [(child, depth + 1) for child in inside(item)]
