"""The one Console: 80 columns unless the terminal says otherwise, color only where it is wanted, nothing
guessed from content.
"""

from __future__ import annotations

import os
import sys
from typing import IO

from rich.console import Console, RenderableType

NARROWEST, WIDEST = 60, 120


def make_console(stream: IO[str] | None = None, width: int | None = None) -> Console:
    """A Console on `stream` (standard output). NO_COLOR, FORCE_COLOR, COLUMNS and pipes are honored, the
    latter by rich itself.
    """
    stream = stream or sys.stdout
    if width is None and not stream.isatty() and "COLUMNS" not in os.environ:
        width = 80
    console = Console(file=stream, width=width, highlight=False, markup=False, emoji=False)
    return Console(
        file=stream,
        width=max(NARROWEST, min(console.width, WIDEST)),
        highlight=False,
        markup=False,
        emoji=False,
    )


def show(*parts: RenderableType, stream: IO[str] | None = None, console: Console | None = None) -> None:
    """Print renderables one after another with no trailing blanks; everything is rendered before the first
    character goes out.
    """
    console = console or make_console(stream)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    text = "\n".join(line.rstrip() for line in captured.get().split("\n"))
    console.file.write(text)
    console.file.flush()
