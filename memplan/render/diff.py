"""What moved between two documents, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from memplan.planner.answers.diff import Diff, Difference
from memplan.planner.tables.units import gib

MOST_ROWS = 12


def diff_screen(found: Diff) -> list[RenderableType]:
    """Peaks, then components, then rows; or one line where nothing moved."""
    if not (found.peaks or found.components or found.rows):
        return [Text("nothing moved", style="green"), *_settings(found)]
    parts: list[RenderableType] = [_table("peaks and moments", found.peaks)]
    if found.components:
        parts += [Text(), _table("components", found.components[:MOST_ROWS])]
    if found.rows:
        parts += [Text(), _table("tensors", found.rows[:MOST_ROWS])]
    return [*parts, *_settings(found)]


def _table(title: str, changes: Sequence[Difference]) -> Table:
    table = Table(
        box=None, pad_edge=False, show_edge=False, title=title, title_justify="left", title_style="bold"
    )
    table.add_column("what", overflow="fold")
    for name in ("old", "new", "moved", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for change in changes:
        share = "new" if change.fraction is None else f"{change.fraction:+.2%}"
        sign, style = ("+", "red") if change.moved > 0 else ("-", "green")
        moved = Text(f"{sign}{gib(abs(change.moved))}", style=style)
        table.add_row(
            Text(": ".join(part for part in change.what if part)),
            gib(change.old),
            gib(change.new),
            moved,
            share,
        )
    return table


def _settings(found: Diff) -> list[RenderableType]:
    if not found.settings:
        return []
    words = ", ".join(f"{name} {old} -> {new}" for name, old, new in found.settings)
    return [Text(), Text(f"the setups differ: {words}", style="yellow")]
