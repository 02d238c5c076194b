"""How the terminal writes names, counts and sizes."""

from __future__ import annotations

from memplan.planner.tables.units import GIB

LABELS = {
    "optimizer_states": "optimizer states",
    "load_peak": "load peak",
    "optimizer_step": "optimizer step",
    "evaluate": "evaluation",
    "save": "saving",
    "merge": "merging",
}


def label(name: str) -> str:
    """A component's or a moment's name as a person reads it."""
    return LABELS.get(name, name.replace("_", " "))


def count(parameters: int) -> str:
    """A count of parameters as people say it: 6.74 B, 40.0 M, 512."""
    for size, unit, digits in ((10**9, "B", 2), (10**6, "M", 1), (10**3, "K", 1)):
        if parameters >= size:
            return f"{parameters / size:,.{digits}f} {unit}"
    return str(parameters)


def number(nbytes: int | None, digits: int = 2) -> str:
    """GiB with two decimals and no unit, for a column; what is not zero never reads as zero."""
    if nbytes is None:
        return ""
    if nbytes == 0:
        return "-"
    least = 10.0**-digits
    return f"{nbytes / GIB:,.{digits}f}" if nbytes >= least / 2 * GIB else f"<{least:.{digits}f}"


def short(nbytes: int) -> str:
    """GiB for a headline, no unit: one decimal, two below 1 GiB; what is not zero never reads as zero."""
    return number(nbytes, 1 if nbytes == 0 or abs(nbytes) >= 0.95 * GIB else 2)


def short_gib(nbytes: int) -> str:
    """The same with its unit."""
    return f"{short(nbytes)} GiB"
