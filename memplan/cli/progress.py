"""Progress of whatever takes over a second: one line on standard error, rewritten in place and taken away."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import Any

from memplan.planner.tables.errors import shorten
from memplan.planner.tables.progress import listening

CLEAR = "\r\x1b[K"  # to the line's start, and erase to its end (ECMA-48 EL)
NARROWEST = 20


class Progress:
    """Within it, what computations tell is shown on a terminal; nowhere else, and not beside a JSON document
    that goes to a pipe.

    The line is gone once the block ends, by an error or Ctrl-C too: print results after it.
    """

    def __init__(self, command: str, as_json: bool = False) -> None:
        screen = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"  # a dumb one cannot erase
        self._shown = screen and (sys.stdout.isatty() or not as_json)
        self._command = command
        self._written = False
        self._stack = ExitStack()

    def __enter__(self) -> Progress:
        if self._shown:
            self._stack.enter_context(listening(self))
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()
        self.clear()

    def __call__(self, text: str) -> None:
        """Show `text` in place of what was there, cut to the terminal's width."""
        if self._shown:
            self._written = True
            line = shorten(f"{self._command}: {text}", max(NARROWEST, _columns() - 1))
            print(f"{CLEAR}{line}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the line away."""
        if self._written:
            self._written = False
            print(CLEAR, end="", file=sys.stderr, flush=True)


def _columns() -> int:
    """The terminal's width; 80 where it does not say."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
