"""The one Console: 80 columns unless the terminal says otherwise, color only where it is wanted, nothing
guessed from content.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import IO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from memplan.planner.tables.errors import printable, redacted

NARROWEST, WIDEST = 60, 120


class Screen(Console):
    """A Console on which no text moves the cursor, changes a color by itself, or shows a token."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The renderable's segments, with control characters made visible and secrets redacted."""
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control is None:
                text = "\n".join(printable(redacted(line)) for line in text.split("\n"))
                segment = Segment(text, segment.style)
            yield segment


def make_console(stream: IO[str] | None = None, width: int | None = None) -> Console:
    """A Console on `stream` (standard output). NO_COLOR, FORCE_COLOR, COLUMNS and pipes are honored, the
    latter by rich itself.
    """
    stream = stream or sys.stdout
    if width is None and not stream.isatty() and "COLUMNS" not in os.environ:
        width = 80
    console = Console(file=stream, width=width, highlight=False, markup=False, emoji=False)
    return Screen(
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
