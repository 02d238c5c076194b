"""Errors that a user can cause. Each carries the exit code of the command line's contract and one readable
message.
"""

from __future__ import annotations

import re
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
    """The legal names closest to `value`, best first; a part of two characters or more counts as close."""
    import difflib  # only a mistake needs it

    names = sorted(set(legal))
    lowered = value[:200].lower()  # no name is as long, and the comparison is quadratic
    close = difflib.get_close_matches(lowered, names, n=count, cutoff=0.5)
    close += [n for n in names if len(lowered) > 1 and lowered in n.lower() and n not in close]
    return close[:count]


def unknown(kind: str, value: object, legal: Iterable[str], hint: str = "") -> UsageError:
    """The error for a name that is not in a table: names the value, the nearest legal ones and the next
    move.
    """
    names = sorted(set(legal))
    text = value if isinstance(value, str) else shown(value)
    close = nearest(text, names)
    if close:
        tail = f"did you mean {' or '.join(close)}?"
    elif len(names) <= 24:
        tail = f"expected one of {', '.join(names)}"
    else:
        tail = f"valid names include {', '.join(names[:6])}"
    stop = "" if not hint or hint.startswith("(") or tail.endswith("?") else "."
    return UsageError(f"unknown {kind} '{shorten(text)}': {tail}{stop} {hint}".rstrip())


LONGEST_ECHO = 60
"""Characters of a value that a message shows."""
LONGEST_WORD = 100
"""Characters without a blank that a message may have: a value, its key and the punctuation around them."""
_PREFIXES = (
    "hf_[A-Za-z0-9]{10}",
    "sk-[A-Za-z0-9_-]{10}",
    "gh[pousr]_[A-Za-z0-9]{10}",
    "github_pat_[A-Za-z0-9]{10}",
    "glpat-[A-Za-z0-9]{10}",
    "AKIA[A-Z0-9]{10}",
    "xox[bap]-[A-Za-z0-9]{10}",
    "eyJ[A-Za-z0-9_-]{10}",
)
SECRET = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(_PREFIXES)})[A-Za-z0-9_.-]*")
"""What looks like a token: the prefixes of Hugging Face, OpenAI and Anthropic, GitHub, GitLab, AWS, Slack and
JSON web tokens, each with ten characters after it. `hf_bf16.json` is a file.
"""


def redacted(text: str) -> str:
    """`text` without anything that looks like a token."""
    return SECRET.sub("(secret)", text)


def printable(text: str) -> str:
    """`text` in which nothing moves a cursor, changes a color or turns the writing direction: such
    characters become '?'.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def shorten(text: str, limit: int = LONGEST_ECHO) -> str:
    """A value as a message may echo it: on one line, without tokens and control characters, cut in its middle
    to `limit` characters, so that hostile input cannot flood a terminal and a long path keeps its name.
    """
    flat = redacted(printable(text[: 8 * limit] + text[-limit:] if len(text) > 9 * limit else text))
    if len(flat) <= limit:
        return flat
    tail = (limit - 3) // 3
    return f"{flat[: limit - 3 - tail]}...{flat[len(flat) - tail :]}"


def shown(value: object, limit: int = LONGEST_ECHO) -> str:
    """Any value as a message may echo it: its repr, shortened; an integer too long to read by its size."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return f"about {'-' if value < 0 else ''}10^{value.bit_length() * 30103 // 100000}"
    try:
        return shorten(repr(value[: 8 * limit] if isinstance(value, str) else value), limit)
    except (RecursionError, ValueError):  # nested too deeply, or it holds an integer of thousands of digits
        return f"a {type(value).__name__}"


def tidy(message: str) -> str:
    """A whole message, whoever wrote it, as a terminal may show it: lines kept, no control characters, no
    tokens, no word longer than a path.
    """
    lines = (redacted(printable(line.expandtabs())) for line in message.split("\n"))
    return "\n".join(
        _LONG_WORD.sub(lambda match: shorten(match.group(), LONGEST_WORD), line) for line in lines
    )


_LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")
