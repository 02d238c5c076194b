"""Many records in one file (JSON lines), for machines from which only a few files come back, and out of it
again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memplan.planner.tables.errors import UsageError
from memplan.profiler.files import append_line, read_lines
from memplan.profiler.record import Measurement, from_document, save_in, scan


def pack(measurements: Iterable[Measurement], archive: Path) -> int:
    """Append records that a JSON-lines archive does not hold yet; how many were appended."""
    held: set[Any] = set()
    if archive.exists():
        held = {document.get("identity") for _, document in read_lines(archive) if document}
    appended = 0
    for measurement in measurements:
        if measurement.identity not in held:
            append_line(archive, measurement.to_document())
            appended += 1
    return appended


def read(archive: Path) -> list[Measurement]:
    """Every whole record of an archive, in order; none where there is no such file."""
    found = []
    for _, document in read_lines(archive) if archive.exists() else ():
        with contextlib.suppress(UsageError):
            found.append(from_document(document or {}))
    return found


def unpack(archive: Path, folder: Path) -> tuple[list[Path], list[str]]:
    """Write each record that the folder lacks as its own file; the new paths, and one message for each
    unreadable line.
    """
    have = {measurement.identity for _, measurement in scan(folder)[0]}
    written: list[Path] = []
    problems: list[str] = []
    for number, document in read_lines(archive):
        try:
            if document is None:
                raise UsageError("not a complete JSON object")
            measurement = from_document(document)
        except UsageError as error:
            problems.append(f"{archive}, line {number}: {error}")
            continue
        if measurement.identity not in have:
            written.append(save_in(measurement, folder))
            have.add(measurement.identity)
    return written, problems
