"""A log of any length, read once from its beginning to its end: what stands around every place where memory
may have run out.
"""

from __future__ import annotations

import re
from typing import BinaryIO

from memplan.planner.tables.errors import UsageError

CHUNK = 2**20
MOST_READ = 2**28
WHOLE = 2**20
"""Bytes of a log that is taken as it is."""
WIDE, NARROW = (20_000, 8_000), (500, 1_500)
"""Bytes kept before and after a sign, of a longer one: a traceback and the longest message, or the message.
"""
MOST_WIDE, MOST_KEPT = 2**19, 2**21
SIGNS = (
    b"out of memory",
    b"outofmemory",
    b"tried to allocate",
    b"alloc_failed",
    b"errormemoryallocation",
    b"oom-kill",
    b"oomkilled",
    b"exitcode",
    b"killed",
    b"sigkill",
)
"""One of these, in any case, is in every message that `oom.FORMS` knows."""


def read_log(stream: BinaryIO) -> str:
    """A log's text: all of it up to 1 MiB; of a longer one what stands around signs of memory that ran out,
    with the tracebacks of the first, 2 MiB in all. UsageError beyond 256 MiB.
    """
    whole, kept = bytearray(), bytearray()
    window = b""
    begin = end = size = 0  # in the log: where the window begins, up to where it is kept, and what was read
    while chunk := stream.read(CHUNK):
        size += len(chunk)
        if size > MOST_READ:
            raise UsageError(
                f"the log has more than {MOST_READ:,} bytes: give the part with the message, as in "
                "tail -c 100000000 LOG | memplan oom"
            )
        if size <= WHOLE:
            whole += chunk
        window += chunk
        for sign in _signs(window):
            before, after = WIDE if len(kept) < MOST_WIDE else NARROW
            low, high = max(begin + sign - before, end), min(begin + sign + after, size)
            if low < high and len(kept) < MOST_KEPT:
                kept += (b"\n" if low > end else b"") + window[max(low - begin, 0) : high - begin]
                end = high
        rest = min(len(window), sum(WIDE))
        begin, window = begin + len(window) - rest, window[len(window) - rest :]
    return bytes(whole if size <= WHOLE else kept).decode("utf-8", errors="replace")


def _signs(window: bytes) -> list[int]:
    """Where in a window the signs stand, in order."""
    lowered = window.lower()
    found: list[int] = []
    for sign in SIGNS:
        at = lowered.find(sign)
        while at >= 0:
            found.append(at)
            at = lowered.find(sign, at + len(sign))
    return sorted(found)


def plain(log: str) -> str:
    """A log without colors, rank prefixes, runs of blanks and line wraps inside a message. Each step reads it
    once: no pattern goes back over more than a bounded number of characters.
    """
    text = re.sub(r"\x1b\[[0-9;]{0,40}m", "", log)
    text = re.sub(
        r"^\[?(?:rank\s?\d{1,6}\]?:?|\[?[a-z_]\w{0,40}?\d{1,6}\]:)\s?",
        "",
        text,
        flags=re.MULTILINE | re.IGNORECASE,
    )
    text = re.sub(r"\n(?: ?\n)+", "\n", re.sub(r"[ \t\r\f\v]+", " ", text))
    return re.sub(r" ?\n ?(?=(?:GiB|MiB|KiB|is |of which|Of the|Including|by PyTorch|and [0-9]))", " ", text)
