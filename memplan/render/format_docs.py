"""docs/formats.md: every key of every training file that memplan reads, with what becomes of it, from the
importers' own tables.

Write it again with `python -m memplan.render.format_docs > docs/formats.md`; a test fails when it is stale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from memplan.planner.importers.files import FORMATS, Format
from memplan.planner.importers.rules import Rule

INTRO = """# Training files that memplan reads

`memplan FILE` and `memplan -- LAUNCH LINE` take a run as it stands. This page is generated from the importers' tables. Every key of a
file is reported (`--json`, `import.keys`) as **used**, **ignored** (known, moves no memory of the training step), **not modeled**
(known, moves memory, and nothing follows it: a warning where it is on) or **unknown** (a warning). `*` stands for any characters. No
framework is imported, nothing is executed, and values that were not used are never shown.

Python sources, notebooks and Markdown are read through their calls: `from_pretrained`, `BitsAndBytesConfig`, `LoraConfig`,
`AdaLoraConfig`, `prepare_model_for_kbit_training`, `TrainingArguments`, `SFTConfig`, `gradient_checkpointing_enable` and optimizers,
where their arguments are literals or names assigned once to one.
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
