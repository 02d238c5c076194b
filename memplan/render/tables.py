"""Lines of cells as a table in the terminal and in Markdown, and shares as percentages."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

ABSENT = "-"
Line = tuple[str, ...]


def percent(value: float | None, sign: bool = False) -> str:
    """A fraction as a percentage with two decimals; a dash for None."""
    if value is None:
        return ABSENT
    shown = round(100 * value, 2) or 0.0  # no minus before a zero
    return f"{shown:+.2f} %" if sign and shown else f"{shown:.2f} %"


def table(title: str, head: Line, lines: Iterable[Line]) -> Table:
    """A table without borders: texts to the left, numbers to the right."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), expand=False
    )
    for number, name in enumerate(head):
        table.add_column(
            name,
            justify="left" if number == 0 or name in ("what", "engine", "source", "") else "right",
            overflow="fold",
        )
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    return table


def markdown(head: Line, lines: Iterable[Line]) -> str:
    """The lines as a Markdown table; a bar in a cell is escaped."""
    rows = [head, tuple("---" for _ in head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
