"""docs/formats.md: every key of every training file that memplan reads, with what becomes of it, from the
importers' own tables.

Write it again with `python -m memplan.render.format_docs > docs/formats.md`; a test fails when it is stale.
"""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memplan.planner.importers.files import FORMATS, Format
from memplan.planner.importers.rules import Rule, find_rule

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "perturbed_keys.json"
"""What `benchmarks/perturbed_keys.py` found: of each library's run, a row for each of its own names."""

INTRO = """# Training files

`memplan FILE` and `memplan -- LAUNCH LINE` read an existing run's configuration. This page is generated from the importers' tables. memplan
reports every key of a file (`--json`, `import.keys`) as **used**, **ignored** (known, no effect on the memory of a training step), **not
modeled** (known and affects memory, but not predicted: a warning if it is on) or **unknown** (a warning). `*` matches any characters. memplan
imports no framework, executes nothing, and never shows values that it did not use.

In Python sources, notebooks and Markdown, memplan reads calls of `from_pretrained`, `BitsAndBytesConfig`, `LoraConfig`, `AdaLoraConfig`,
`prepare_model_for_kbit_training`, `TrainingArguments`, `SFTConfig`, `gradient_checkpointing_enable` and optimizers, if their arguments are
literals or names that are assigned one literal once.

"""


def page() -> str:
    """The whole of docs/formats.md as Markdown."""
    return "\n".join(
        [INTRO + _judged(), *(_format(row) for row in FORMATS.values() if row.name != "memplan")]
    )


JUDGED_AS = {
    "run": "run",
    "removed": "run",
    "read": "read",
}
"""What a row says -> how its key is judged. `removed`: the library ends where a file names the key."""
ORDER = ("run", "read", "reason")


def judgments() -> dict[tuple[str, str], str]:
    """How each ignored key of each format is judged: `run`, `read` or `reason`, by (format, key).

    A key with `*` stands for names of the library, and is judged where each of them is. Tables share rows: what
    a library's own trainer showed of a row holds for every table that has it and has no run of its own.
    """
    by_rule: dict[int, dict[str, list[str]]] = {}  # of a rule, by format
    best: dict[tuple[int, str], str] = {}
    for result in json.loads(RESULTS.read_text(encoding="utf-8")).values():
        name = result["format"]
        for row in result["keys"]:
            key = id(rule_at(FORMATS[name].rules, row["name"])), row["name"]
            way = JUDGED_AS.get(row["how"], "reason")
            by_rule.setdefault(key[0], {}).setdefault(name, []).append(row["name"])
            best[key] = min(way, best.get(key, way), key=ORDER.index)
    found = {}
    for name, row in FORMATS.items():
        for path, rule in entries(row.rules):
            if rule.status == "ignored":
                formats = by_rule.get(id(rule), {})
                names = formats.get(name) or formats.get("hf") or next(iter(formats.values()), [])
                ways = [best[id(rule), each] for each in names] or ["reason"]
                found[name, path] = max(ways, key=ORDER.index)
    return found


def rule_at(rules: Mapping[str, Rule], path: str) -> Rule | None:
    """The rule of a name inside nested tables."""
    *outer, last = path.split(".")
    for part in outer:
        rule = find_rule(rules, part)
        rules = (rule.inner or {}) if rule else {}
    return find_rule(rules, last)


def _judged() -> str:
    ways = judgments()
    count = Counter(ways.values())
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    ran = sum(row["how"] in ("run", "removed") for result in results.values() for row in result["keys"])
    libraries = sorted({f"{result['library']} {result['version']}" for result in results.values()})
    text = (
        f"{len(ways)} ignored keys of all tables: {count['run']} are judged by a run of the library that reads them, "
        "two steps of a small model with another value of each name that the key stands for, which allocated what "
        f"they allocate without it ({ran} names in all); {count['read']} by the library's file that was read; "
        f"{count['reason']} by the reason beside them alone (tests/key_judgments.py). What was tried and what "
        f"differed is in benchmarks/perturbed_keys.json, which benchmarks/perturbed_keys.py writes; what moved is no "
        f"longer ignored. The libraries: {', '.join(libraries)}."
    )
    lines = [
        "",
        *textwrap.wrap(text, 140),
        "",
        "| format | ignored keys | by a run | by a file | by a reason |",
        "|---|---|---|---|---|",
    ]
    for name, row in FORMATS.items():
        own = Counter(way for (each, _), way in ways.items() if each == name)
        if own:
            numbers = " | ".join(str(own[way]) for way in ORDER)
            lines.append(f"| {row.title} | {own.total()} | {numbers} |")
    return "\n".join([*lines, ""])


def _format(row: Format) -> str:
    rows = list(entries(row.rules))
    lines = [
        f"## {row.title}",
        "",
        "Used: " + ", ".join(f"`{key}`" for key, rule in rows if rule.status == "used") + ".",
        "",
    ]
    for status, title in (("not_modelled", "Not modeled"), ("ignored", "Ignored")):
        reasons: dict[str, list[str]] = {}
        for key, rule in rows:
            if rule.status == status:
                reasons.setdefault(rule.why, []).append(key)
        lines += [
            f"{title}:",
            "",
            *(f"* {why}: " + ", ".join(f"`{key}`" for key in keys) for why, keys in reasons.items()),
            "",
        ]
    return "\n".join(lines)


def entries(rules: Mapping[str, Rule], prefix: str = "") -> Iterator[tuple[str, Rule]]:
    """Every key with its rule, those of nested mappings with their path."""
    for key, rule in rules.items():
        if rule.inner is not None:
            yield from entries(rule.inner, f"{prefix}{key}.")
        else:
            yield prefix + key, rule


if __name__ == "__main__":
    print(page(), end="")
