"""docs/formats.md: every key of every training file that memplan reads, with what becomes of it, from the
importers' own tables.

Write it again with `python -m memplan.render.format_docs > docs/formats.md`; a test fails when it is stale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from memplan.planner.importers.files import FORMATS, Format
from memplan.planner.importers.rules import Rule

INTRO = """# Training files

`memplan FILE` and `memplan -- LAUNCH LINE` read an existing run's configuration. This page is generated from the importers' tables. memplan
reports every key of a file (`--json`, `import.keys`) as **used**, **ignored** (known, no effect on the memory of a training step), **not
modeled** (known and affects memory, but not predicted: a warning if it is on) or **unknown** (a warning). `*` matches any characters. memplan
imports no framework, executes nothing, and never shows values that it did not use.

In Python sources, notebooks and Markdown, memplan reads calls of `from_pretrained`, `BitsAndBytesConfig`, `LoraConfig`, `AdaLoraConfig`,
`prepare_model_for_kbit_training`, `TrainingArguments`, `SFTConfig`, `gradient_checkpointing_enable` and optimizers, if their arguments are
literals or names that are assigned one literal once.

1056 ignored keys of all tables: 220 are arguments of transformers' Trainer or TRL's SFTTrainer, which ran two steps with each of them
changed (73 fields) and allocated the same (tests/test_perturbed_keys.py); the others rest on the reason beside them, 836 in all, listed in
tests/key_judgments.py.
"""


def page() -> str:
    """The whole of docs/formats.md as Markdown."""
    return "\n".join([INTRO, *(_format(row) for row in FORMATS.values() if row.name != "memplan")])


def _format(row: Format) -> str:
    entries = list(_entries(row.rules))
    lines = [
        f"## {row.title}",
        "",
        "Used: " + ", ".join(f"`{key}`" for key, rule in entries if rule.status == "used") + ".",
        "",
    ]
    for status, title in (("not_modelled", "Not modeled"), ("ignored", "Ignored")):
        reasons: dict[str, list[str]] = {}
        for key, rule in entries:
            if rule.status == status:
                reasons.setdefault(rule.why, []).append(key)
        lines += [
            f"{title}:",
            "",
            *(f"* {why}: " + ", ".join(f"`{key}`" for key in keys) for why, keys in reasons.items()),
            "",
        ]
    return "\n".join(lines)


def _entries(rules: Mapping[str, Rule], prefix: str = "") -> Iterator[tuple[str, Rule]]:
    """Every key with its rule, those of nested mappings with their path."""
    for key, rule in rules.items():
        if rule.inner is not None:
            yield from _entries(rule.inner, f"{prefix}{key}.")
        else:
            yield prefix + key, rule


if __name__ == "__main__":
    print(page(), end="")
