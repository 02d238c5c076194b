"""memplan list models|gpus|methods|optimizers|recipes|tasks: the tables that the options name things from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from memplan.cli.options import HELP
from memplan.planner import __version__

Rows = list[dict[str, Any]]


def models() -> Rows:
    """Every catalog model: its name, parameter count, aliases and Hugging Face ids."""
    from memplan.planner.inputs.models import index

    return [
        {
            "name": name,
            "parameters": row["parameters"],
            "aliases": list(row["aliases"]),
            "ids": list(row["ids"]),
        }
        for name, row in sorted(index().items())
    ]


def gpus() -> Rows:
    """Every GPU with its usable bytes, and a sentence on where that number comes from."""
    from memplan.planner.tables.gpus import explain_source
    from memplan.planner.tables.gpus import gpus as table

    return [{**gpu.to_document(), "source": explain_source(gpu)} for gpu in table().values()]


def methods() -> Rows:
    """Every method: what it trains, its peft_type and a one-line summary."""
    from memplan.planner.tables.methods import METHODS

    return [
        {"name": row.name, "trains": row.trains, "peft_type": row.peft_type, "summary": row.summary}
        for row in METHODS.values()
    ]


def optimizers() -> Rows:
    """Every optimizer: its states, each with the rule that gives its size, and the modes it can step in."""
    from memplan.planner.tables.optimizers import OPTIMIZERS

    return [
        {
            "name": row.name,
            "states": [{"name": name, "rule": rule} for name, rule in row.states],
            "modes": list(row.modes),
            "library": row.library,
            "paged": row.paged,
            "source": row.source,
        }
        for row in OPTIMIZERS.values()
    ]


def recipes() -> Rows:
    """Every recipe: its training stack, the methods that it is limited to, and its notes."""
    from memplan.planner.tables.recipes import RECIPES

    return [
        {
            "name": row.name,
            "summary": row.summary,
            "methods": list(row.only),
            "notes": [text for _, text in row.notes],
        }
        for row in RECIPES.values()
    ]


def tasks() -> Rows:
    """Every task: rows of a batch for each example, its head, and what of it is not counted."""
    from memplan.planner.tables.tasks import TASKS

    return [
        {
            "name": row.name,
            "summary": row.summary,
            "rows": row.rows,
            "head": row.head,
            "reference": row.reference,
            "not_modelled": row.lacks or None,
            "source": row.source,
        }
        for row in TASKS.values()
    ]


TABLES: dict[str, Callable[[], Rows]] = {
    "models": models,
    "gpus": gpus,
    "methods": methods,
    "optimizers": optimizers,
    "recipes": recipes,
    "tasks": tasks,
}


@click.command(
    "list", context_settings=HELP, short_help="List models, gpus, methods, optimizers, recipes or tasks."
)
@click.argument("what", type=click.Choice(tuple(TABLES)))
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
def command(what: str, as_json: bool) -> None:
    """List the valid names for MODEL, --gpu, --method, --optimizer, --recipe and --task."""
    rows = TABLES[what]()
    if as_json:
        from memplan.render.json import write

        write({"schema": "memplan.list/1", "memplan_version": __version__, "what": what, what: rows})
        return
    from memplan.render.console import show
    from memplan.render.lists import listing

    show(*listing(what, rows))
