"""A small HTML table for notebooks; every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable


def html_table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """A table of two columns under its title."""
    from html import escape  # its entities are read when it is imported

    lines = "".join(
        f'<tr><td style="text-align:left">{escape(name)}</td><td>{escape(value)}</td></tr>'
        for name, value in rows
    )
    return f'<table><caption style="text-align:left">{escape(title)}</caption><tbody>{lines}</tbody></table>'
