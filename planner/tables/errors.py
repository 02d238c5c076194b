"""Errors that a user can cause. Each carries the exit code of the command line's contract and one readable
message.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MemplanError(Exception):
    """Anything a user can cause or meet; `exit_code` is what the command line ends with."""

    exit_code = 2


class UsageError(MemplanError):
    """Unreadable or contradictory input: exit code 2."""


class NetworkError(MemplanError):
    """The network, a gated repository, or being offline: exit code 3."""

    exit_code = 3


class ToleranceError(MemplanError):
    """A comparison outside its tolerance: exit code 4."""

    exit_code = 4


def nearest(value: str, legal: Iterable[str], count: int = 3) -> list[str]:
    """The legal names closest to `value`, best first; substring matches count as close."""
    names = sorted(set(legal))
    lowered = value.lower()
    close = difflib.get_close_matches(lowered, names, n=count, cutoff=0.5)
    close += [n for n in names if lowered and lowered in n.lower() and n not in close]
    return close[:count]


def unknown(kind: str, value: object, legal: Iterable[str], hint: str = "") -> UsageError:
    """The error for a name that is not in a table: names the value, the nearest legal ones and the next
    move.
    """
    names = sorted(set(legal))
    close = nearest(str(value), names)
    shown = shorten(str(value))
    if close:
        tail = f"did you mean {' or '.join(close)}?"
    elif len(names) <= 24:
        tail = f"expected one of {', '.join(names)}"
    else:
        tail = f"valid names include {', '.join(names[:6])}"
    stop = "" if not hint or hint.startswith("(") or tail.endswith("?") else "."
    return UsageError(f"unknown {kind} '{shown}': {tail}{stop} {hint}".rstrip())


def shorten(text: str, limit: int = 80) -> str:
    """`text` on one line, cut to `limit` characters, so that hostile input cannot flood a terminal."""
    flat = "".join(c if c.isprintable() else "?" for c in text)
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."
