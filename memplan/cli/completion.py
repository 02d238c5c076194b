"""What a shell completes after TAB: models, GPUs, methods and the other names; click writes the scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

TABLES = {
    "gpu": ("memplan.planner.tables.gpus", "gpus"),
    "method": ("memplan.planner.tables.methods", "METHODS"),
    "model": ("memplan.planner.inputs.models", "names"),
    "optimizer": ("memplan.planner.tables.optimizers", "OPTIMIZERS"),
    "recipe": ("memplan.planner.tables.recipes", "RECIPES"),
}
"""What is named -> the table of its names: a mapping, or a function that gives one."""
MORE = {"gpu": ("local",)}

Complete = Callable[[Any, Any, str], "list[CompletionItem]"]


def names(what: str) -> Iterable[str]:
    """Every name of a kind; the tables are imported now, so that no other start-up pays for it."""
    module, attribute = TABLES[what]
    table = getattr(import_module(module), attribute)
    return (*(table() if callable(table) else table), *MORE.get(what, ()))


def completes(what: str) -> Complete:
    """The `shell_complete` of a parameter that names one of a kind; MODEL may be a file as well."""

    def complete(context: Any, parameter: Any, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name) for name in names(what) if name.startswith(incomplete)]
        return found or ([CompletionItem(incomplete, type="file")] if what == "model" else [])

    return complete
