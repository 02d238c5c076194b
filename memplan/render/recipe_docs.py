"""docs/recipes.md: every Setup field's default per recipe and method, each with its source, from the tables
themselves.

Write it again with `python -m memplan.render.recipe_docs > docs/recipes.md`; a test fails when it is stale.
"""

from __future__ import annotations

from typing import Any

from memplan.planner.inputs.setup import FIELDS, resolve
from memplan.planner.tables.defaults import BASE, BASE_SOURCES
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.recipe_row import Recipe
from memplan.planner.tables.recipes import RECIPES

SHOWN = ("lora", "full", "qlora")
"""The methods whose defaults a table shows: the others follow lora, plus what `METHODS` says they bring."""

INTRO = """# Recipe defaults

`full` and `qlora` mean different amounts of memory in different training stacks. A **recipe** names the stack, and every prediction
states the recipe it assumed. This page is generated from `planner/tables/recipes.py` and `planner/tables/methods.py`. Each row is a
setting (its name in `--set`) with its default, the methods that change it, and the source of the default.
"memplan default" marks a choice of memplan, made where a library has no default or one that nobody trains with.
"""


def page() -> str:
    """The whole of docs/recipes.md as Markdown."""
    parts = [INTRO, *(_recipe(row) for row in RECIPES.values()), _methods()]
    return "\n".join(parts) + "\n"


def _recipe(row: Recipe) -> str:
    lines = [f"## {row.name}: {row.summary}", ""]
    if row.only:
        lines += [f"Defined for {', '.join(row.only)} only.", ""]
    lines += ["| setting | default | other methods | source |", "|---|---|---|---|"]
    methods = [name for name in SHOWN if not row.only or name in row.only]
    setups = {name: resolve({"recipe": row.name, "method": name}) for name in methods}
    first = methods[0]
    for field in FIELDS:
        if field in ("method", "recipe"):
            continue
        values = {name: getattr(setup, field) for name, setup in setups.items()}
        others = [f"{name}: {text(value)}" for name, value in values.items() if value != values[first]]
        lines.append(f"| `{field}` | {text(values[first])} | {'; '.join(others)} | {source_of(row, field)} |")
    lines += [
        "",
        *(
            f"* With {' and '.join(f'`{key}` = {text(value)}' for key, value in holds.items())}: "
            + ", ".join(f"`{k}` = {text(v)}" for k, v in changes.items())
            + "."
            for holds, changes in row.when
        ),
    ]
    lines += [f"* {note}." for _, note in row.notes]
    return "\n".join(lines) + "\n"


def _methods() -> str:
    lines = ["## Method defaults in every recipe", "", "| method | trains | defaults |", "|---|---|---|"]
    for method in METHODS.values():
        brings = ", ".join(f"`{key}` = {text(value)}" for key, value in method.defaults.items())
        lines.append(f"| `{method.name}` | {method.summary} | {brings} |")
    return "\n".join(lines)


def source_of(row: Recipe, field: str) -> str:
    """Where a default was read: the recipe's own source, else the fallback's, else memplan's choice."""
    if field in row.sources:
        return row.sources[field]
    layers = (row.defaults, *row.methods.values())
    same = all(layer.get(field, BASE.get(field)) == BASE.get(field) for layer in layers)
    return BASE_SOURCES.get(field, "memplan default") if same else "memplan default"


def text(value: Any) -> str:
    """A setting's value as the tables show it."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    print(page(), end="")
