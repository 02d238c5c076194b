"""Reading somebody's YAML or JSON without trusting it: bounded in size and depth, no tags, no repeated keys,
nothing echoed. Training files, setups and campaigns come in here.

A configuration file may hold tokens and passwords, so an error names the place and the problem, never the
text found there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memplan.planner.inputs import textfile
from memplan.planner.inputs.jsonfile import DEEPEST, MOST_DIGITS, check_values, parse_json, unfit, walk
from memplan.planner.tables.errors import UsageError, shorten

LARGEST_FILE = 4 * 2**20
LARGEST_YAML = 2**20
"""Characters of YAML: its parser reads two megabytes a second, without libyaml a tenth of that."""
MOST_NODES = 200_000


def read_text(path: Path) -> str:
    """The text of a configuration file. UsageError where it is missing, larger than 4 MiB, or not UTF-8."""
    return textfile.read_text(path, LARGEST_FILE)


def parse(text: str, name: str) -> Any:
    """The value of a JSON or YAML text. UsageError naming the place of whatever is wrong, never its
    content.
    """
    is_yaml, name = name.endswith((".yaml", ".yml")), shorten(name)
    try:
        if text.lstrip()[:1] in ("{", "["):
            try:
                return parse_json(text, name, MOST_NODES, unique=True)
            except json.JSONDecodeError as error:
                if not is_yaml:  # YAML may start with a brace too
                    place = f"line {error.lineno} column {error.colno}"
                    raise UsageError(f"'{name}' is not valid JSON: {error.msg}, {place}") from None
        value = _parse_yaml(text, name)
        check_values(value, name, MOST_NODES)
        return value
    except RecursionError:
        raise UsageError(f"'{name}' is nested more than {DEEPEST} levels deep") from None


def _parse_yaml(text: str, name: str) -> Any:
    import yaml

    if len(text) > LARGEST_YAML:
        raise UsageError(f"'{name}' has {len(text):,} characters of YAML: expected at most {LARGEST_YAML:,}")
    base: Any = getattr(
        yaml, "CSafeLoader", yaml.SafeLoader
    )  # libyaml where the wheel has it: ten times faster

    class Loader(base):  # type: ignore[misc]
        """YAML's own plain types, dates as the text that they are."""

        yaml_implicit_resolvers = {
            first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
            for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    try:
        _check_events(yaml.parse(text, Loader=base), name)
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
        raise UsageError(f"'{name}' has {refusal} (line {refusal.line}): plain YAML only") from None
    except yaml.MarkedYAMLError as error:
        if "nesting depth" in (error.problem or ""):  # libyaml's own bound
            raise UsageError(f"'{name}' is nested more than {DEEPEST} levels deep") from None
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"'{name}' is not valid YAML{line}: {_without_content(error.problem)}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UsageError(f"'{name}' is not valid YAML: {type(error).__name__}") from None


def _check_events(events: Iterable[Any], name: str) -> None:
    """Refuse a tag and too deep a nesting before a tree is made of them, which is done recursively."""
    from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

    depth = 0
    for event in events:
        if isinstance(event, CollectionStartEvent):
            depth += 1
        elif isinstance(event, CollectionEndEvent):
            depth -= 1
        elif not isinstance(event, (ScalarEvent, AliasEvent)):
            continue
        if getattr(event, "tag", None):
            raise _Refused("a tag", event.start_mark)
        if depth > DEEPEST:
            raise UsageError(f"'{name}' is nested more than {DEEPEST} levels deep")


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
            raise _Refused(f"the key '{shorten(key.value)}' twice", key.start_mark)
        seen.add(key.value)


def _bounded_nodes(root: Any, name: str) -> None:
    """Refuse, before anything is built, a YAML tree that expands beyond the bounds, contains itself, or holds
    a number of too many digits.
    """

    def inside(node: Any) -> Iterable[tuple[str, Any]]:
        if not isinstance(node.value, list):
            return
        if node.value and isinstance(node.value[0], tuple):
            _check_keys(node)
            for key, value in node.value:
                yield "", key
                yield f".{key.value}", value
        else:
            yield from ((f"[{i}]", item) for i, item in enumerate(node.value))

    too_many = f"expands to more than {MOST_NODES:,} values: anchors may not multiply without end"
    for path, node in walk(root, name, inside, too_many, MOST_NODES):
        if node.tag == "tag:yaml.org,2002:int" and len(node.value) > 2 * MOST_DIGITS:
            raise unfit(name, path, f"a number of {len(node.value):,} digits")
