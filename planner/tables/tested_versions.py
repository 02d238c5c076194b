"""Versions of the libraries that the rules were read from and tested with: a copy of pyproject's
[tool.memplan.tested], which a wheel does not carry. A test holds the two equal, and the newest ones equal to
constraints.txt.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import zip_longest

TESTED: dict[str, tuple[str, str]] = {
    "torch": ("2.11", "2.13.0"),
    "transformers": ("5.17", "5.24.0"),
    "peft": ("0.20", "0.21.2"),
    "bitsandbytes": ("0.49", "0.50.2"),
    "trl": ("1.0", "1.16.0"),
}
"""Library -> (oldest that is accepted, newest that is tested)."""

REMEDY = {
    "formula": "--engine trace runs the installed ones",
    "trace": "what they changed on a CUDA device is not known",
}
"""Engine -> what to know where a library is newer than its newest tested version."""


def newer_than_tested(engine: str) -> Iterator[str]:
    """One line that names every installed library newer than the newest tested one; none where none is."""
    found = [
        f"{name} {version} (tested: up to {TESTED[name][1]})"
        for name, version in installed_versions().items()
        if is_newer(version, TESTED[name][1])
    ]
    if found:
        yield f"installed and newer than what the rules were read from: {', '.join(found)}; {REMEDY[engine]}"


def is_newer(version: str, than: str) -> bool:
    """Whether one version's release numbers are above another's: "2.14.0.dev1+cu130" is above "2.13.0",
    "2.13.0+cpu" is not. A text that begins with no number is not newer: nothing is known of it.
    """
    pairs = zip_longest(_release(version), _release(than), fillvalue=0)
    return bool(_release(version)) and next((one > other for one, other in pairs if one != other), False)


def _release(version: str) -> tuple[int, ...]:
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in numbers.group().split(".")) if numbers else ()


@cache
def installed_versions() -> dict[str, str]:
    """Library of TESTED -> its installed version, for those that are installed: nothing is imported."""
    return dict(_installed(sys.path))


def _installed(path: Iterable[str]) -> Iterator[tuple[str, str]]:
    """From the names of the folders that installers leave, `torch-2.13.0.dist-info`; the first on the path
    counts, as it does for an import. importlib.metadata says the same, but its import alone takes a hundred
    times as long.
    """
    folder_name = re.compile(rf"({'|'.join(TESTED)})-([^-]+)\.dist-info", re.IGNORECASE)
    seen: set[str] = set()
    for folder in path:
        try:
            entries = os.listdir(folder or os.curdir)
        except OSError:  # a zip file, or a folder that is not there
            continue
        here = {match[1].lower(): match[2] for match in map(folder_name.fullmatch, entries) if match}
        yield from ((name, here[name]) for name in sorted(here.keys() - seen))
        seen |= here.keys()
