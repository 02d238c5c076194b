"""What the ignored keys of the importers' tables do in the library that owns them: each is given another
value, and the library's own program runs two steps of a small model on a CPU.

    PYTHONPATH=. python benchmarks/perturbed_keys.py FORMAT [--only NAME ...] [--group N] [--check]

FORMAT is a row of DRIVERS; this Python must have its library. Its rows of `perturbed_keys.json` are written
anew, one by one; `--check` writes none, and ends with 1 where a key is judged otherwise than the file has it.
Keys change N at a time, and halves of a group where something moved or failed, so that what moves is found
alone; a row says with how many others its key changed.
"""

from __future__ import annotations

import argparse
import enum
import importlib
import importlib.metadata
import json
import re
import sys
import tempfile
import time
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from perturbing import Seen, Watch, apart, differences, told

from memplan.planner.importers.files import FORMATS
from memplan.planner.importers.rules import Rule
from memplan.render.format_docs import entries, rule_at

RESULTS = Path(__file__).with_suffix(".json")
DRIVERS = {
    "axolotl": "perturbed_axolotl",
    "llamafactory": "perturbed_llamafactory",
    "llamafactory-v1": "perturbed_llamafactory_v1",
    "hf": "perturbed_trainers",
    "deepspeed": "perturbed_deepspeed",
    "peft": "perturbed_peft",
    "trl": "perturbed_trl",
    "unsloth": "perturbed_unsloth",
    "swift": "perturbed_swift",
    "torchtune": "perturbed_torchtune",
    "accelerate": "perturbed_accelerate",
}
"""Format -> the module that runs its library."""
GROUP = 8
SHOWN = 6  # settings that a row lists

REMOVED = re.compile(
    "no longer|(has|have) been (removed|deprecated)|not supported in Transformers V5|deprecated version of|"
    "Extra inputs are not permitted|not used by the HfArg"
)
"""Words of a library that takes no value of a key."""

Row = dict[str, Any]


def other(annotation: Any, default: Any) -> Any:
    """A value that an annotation allows, other than the default. LookupError where none is to be guessed."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return other(parts[0], default)
    if origin in (typing.Union, types.UnionType):
        kinds = [part for part in parts if part is not type(None)]
        same = [kind for kind in kinds if isinstance(kind, type) and type(default) is kind]
        return other((same or kinds)[0], default)
    if origin is typing.Literal:
        return next(value for value in parts if value not in (default, None))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return next(member.value for member in annotation if default not in (member, member.value))
    if annotation is bool or isinstance(default, bool):
        return not default
    if annotation in (int, float):
        return 2 * abs(default or 0) + 1 if annotation is int else (default or 0) / 2 + 0.05
    if annotation is str:
        return "x"
    if (origin or annotation) in (list, tuple, typing.Sequence):
        return ["x"]
    if (origin or annotation) is dict:
        return {"x": 1}
    raise LookupError(f"no value is known for {annotation}")


def ignored_names(rules: Mapping[str, Rule], names: Iterable[str]) -> dict[str, str]:
    """The library's own names that a table ignores, and the key of the table that does so."""
    found = {}
    for name in names:
        rule = rule_at(rules, name)
        if rule is not None and rule.status == "ignored":
            keys = (key for key, each in entries(rules) if each is rule and fnmatchcase(name, key))
            found[name] = next(keys)
    return found


class Library:
    """One library's program, and what its runs show."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.driver = importlib.import_module(DRIVERS[name])
        self.driver.prepare(folder)
        self.version = importlib.metadata.version(self.driver.LIBRARY)
        self.before: dict[str, Seen] = {}
        self.runs = 0

    def placed(self, changes: Any) -> Any:
        """The values with this run's folder where they say FOLDER."""
        if isinstance(changes, dict):
            return {key: self.placed(value) for key, value in changes.items()}
        if isinstance(changes, list):
            return [self.placed(value) for value in changes]
        return changes.replace("FOLDER", str(self.folder)) if isinstance(changes, str) else changes

    def seen(self, changes: dict[str, Any]) -> Seen | str:
        """What a run with some keys changed shows; the error of one that did not end well."""

        def go() -> Seen:
            watch = Watch()
            self.driver.run(watch, self.folder, self.placed(changes))
            return watch.seen()

        self.runs += 1
        return apart(go)

    def without(self, changes: dict[str, Any]) -> Seen:
        """The run that others are compared with. RuntimeError where it fails."""
        key = json.dumps(changes, sort_keys=True)
        if key not in self.before:
            seen = self.seen(changes)
            if isinstance(seen, str):
                raise RuntimeError(f"{self.name} does not run: {seen}")
            self.before[key] = seen
        return self.before[key]

    def refusals(self, values: dict[str, Any], beside: Mapping[str, Any]) -> dict[str, str]:
        """The keys whose value the library's own parser refuses, with its words. One process parses all."""

        def go() -> Seen:
            found = {}
            for name, value in values.items():
                try:
                    self.driver.check(self.folder, self.placed({**beside.get(name, {}), name: value}))
                except BaseException as error:  # a parser may end the process
                    found[name] = told(error)
            return found

        answer = apart(go, 600)
        if isinstance(answer, str):
            raise RuntimeError(f"{self.name} does not parse: {answer}")
        return answer

    def judge(self, values: dict[str, Any], beside: dict[str, Any]) -> Iterator[tuple[str, Row]]:
        """(key, row) of each key, all of which change together; where anything moves or fails, halves of them
        do.
        """
        after = self.seen({**beside, **values})
        if isinstance(after, str) and len(values) == 1:
            how = "removed" if REMOVED.search(after) else "failed"
            yield next(iter(values)), {"how": how, "note": after}
            return
        found = None if isinstance(after, str) else differences(self.without(beside), after)
        if found and (not found["moved"] or len(values) == 1):
            for name in values:
                word = name.rpartition(".")[2].lower()
                own = [each for each in found["settings"] if len(values) == 1 or word in each.lower()]
                how = "moved" if found["moved"] else "run"
                row = {"how": how, "differs": own[:SHOWN], "together": len(values)}
                yield name, {**row, "note": ", ".join(found["moved"])} if found["moved"] else row
            return
        names = list(values)
        middle = len(names) // 2
        for part in (names[:middle], names[middle:]):
            yield from self.judge({name: values[name] for name in part}, beside)


def rows_of(library: Library, only: list[str], group: int) -> Iterator[Row]:
    """A row for each of the library's names that the table ignores."""
    driver, rules = library.driver, FORMATS[library.name].rules
    known = driver.keys() | dict.fromkeys(driver.READ, (object, None))
    values, keys = {}, ignored_names(rules, known)
    for name in keys:
        if only and name not in only:
            continue
        if name in driver.READ:
            yield {"key": keys[name], "name": name, "how": "read", "note": driver.READ[name]}
            continue
        try:
            values[name] = driver.VALUES[name] if name in driver.VALUES else other(*known[name])
        except (LookupError, StopIteration) as error:
            yield {"key": keys[name], "name": name, "how": "failed", "note": str(error) or "one value only"}
    beside = {name: driver.BESIDE.get(name, {}) for name in values}
    refused = library.refusals(values, beside)
    for name, words in refused.items():
        how = "removed" if REMOVED.search(words) else "refused"
        yield {"key": keys[name], "name": name, "value": values[name], "how": how, "note": words}
    sets: dict[str, list[str]] = {}
    for name in values:
        if name not in refused:
            sets.setdefault(json.dumps(beside[name], sort_keys=True), []).append(name)
    for text, names in sets.items():
        for start in range(0, len(names), group):
            part = {name: values[name] for name in names[start : start + group]}
            for name, row in library.judge(part, json.loads(text)):
                yield {"key": keys[name], "name": name, "value": values[name], **row}


def section(library: Library) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results of all libraries, and this one's among them."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    name = f"{library.name}, {library.driver.LIBRARY} {library.version}"
    empty = {
        "format": library.name,
        "library": library.driver.LIBRARY,
        "version": library.version,
        "keys": [],
    }
    return results, results.setdefault(name, empty)


def keep(library: Library, row: Row) -> None:
    """A row in the place of the one of its name. A key that moved stays, though it is no longer ignored."""
    results, own = section(library)
    rows = {each["name"]: each for each in own["keys"]} | {row["name"]: row}
    own["keys"] = [rows[name] for name in sorted(rows)]
    write(results)


def write(results: Mapping[str, Any]) -> None:
    """Keep the results, a line for each key."""
    parts = []
    for name, result in sorted(results.items()):
        head = json.dumps({key: value for key, value in result.items() if key != "keys"})[1:-1]
        rows = ",\n  ".join(json.dumps(row) for row in result["keys"])
        parts.append(f' "{name}": {{{head}, "keys": [\n  {rows}\n ]}}')
    RESULTS.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", choices=DRIVERS)
    parser.add_argument("--only", nargs="*", default=[], help="names of the library's keys")
    parser.add_argument("--group", type=int, default=GROUP, help="keys that change together")
    parser.add_argument("--check", action="store_true", help="compare with the file, and write nothing")
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        library = Library(args.library, Path(folder))
        known = {row["name"]: row["how"] for row in section(library)[1]["keys"]}
        other = []
        for row in rows_of(library, args.only, args.group):
            print(f"{time.monotonic() - start:5.0f} s  {json.dumps(row)[:200]}", flush=True)
            if not args.check:
                keep(library, json.loads(json.dumps(row).replace(str(folder), "FOLDER")))
            elif known.get(row["name"]) != row["how"]:
                other.append(row["name"])
    if args.check:
        print(f"judged otherwise: {', '.join(other) or 'none'}")
        return int(bool(other))
    print(f"{library.runs} runs of {args.library} {library.version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
