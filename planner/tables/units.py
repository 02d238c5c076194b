"""Bytes are ints everywhere; this file is the only place that turns them into text, or text into them."""

from __future__ import annotations

import re

from memplan.planner.tables.errors import UsageError, shorten

KIB, MIB, GIB = 2**10, 2**20, 2**30
SIZES = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
    "TiB": 2**40,
}
"""Bytes of every unit that is read, as it is written; `BY_LOWER` for those who write it otherwise."""
BY_LOWER = {unit.lower(): size for unit, size in SIZES.items()}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def gib(nbytes: int) -> str:
    """Bytes as GiB with two decimals, small sizes as MiB or KiB: the only units that are printed."""
    if abs(nbytes) >= 0.1 * GIB:
        return f"{nbytes / GIB:,.2f} GiB"
    if abs(nbytes) >= 0.1 * MIB:
        return f"{nbytes / MIB:,.2f} MiB"
    return f"{nbytes / KIB:,.2f} KiB" if abs(nbytes) >= KIB else f"{nbytes} B"


def parse_size(text: str) -> int:
    """A size that a person typed, in bytes: GB is 10^9, GiB is 2^30, a bare number is bytes. Raises
    UsageError.
    """
    match = _SIZE.fullmatch(text)
    unit = match.group(2).lower() if match else ""
    scale = {"": 1, **BY_LOWER}.get(unit)
    if match is None or scale is None:
        raise UsageError(
            f"'{shorten(text)}' is not a size: expected a number and a unit, such as 24GiB or 24GB"
        )
    nbytes = float(match.group(1)) * scale
    if not 0.5 < nbytes < 2**60:
        raise UsageError(
            f"'{shorten(text)}' is not a usable size: expected more than 0 and less than 2^60 bytes"
        )
    return round(nbytes)
