"""Writing documents so that a kill, a full disk or a second writer never leaves half a file or loses an old
one.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memplan.planner.inputs.jsonfile import parse_json
from memplan.planner.inputs.textfile import open_regular, read_text
from memplan.planner.tables.errors import UsageError, shorten

LARGEST = 64 * 2**20
"""Bytes of a record: one with a whole history of events has a tenth of it."""

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EISDIR: "it is a folder",
}


def cannot(verb: str, path: Path, error: OSError) -> UsageError:
    """The one message for a file that could not be written or read."""
    reason = _REASONS.get(error.errno or 0, (error.strerror or str(error)).lower())
    return UsageError(f"cannot {verb} {path}: {reason}")


def make_folder(path: Path) -> Path:
    """Create a folder and its parents; UsageError where that is not possible or nothing can be written into
    it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except FileExistsError:
        raise UsageError(f"cannot write into {path}: it is a file, expected a folder") from None
    except OSError as error:
        raise cannot("write into", path, error) from None
    return path


def write_document(
    path: Path, document: Mapping[str, Any], *, replace: bool = False, indent: int | None = 1
) -> Path:
    """Write a JSON document atomically: a temporary file in the same folder, flushed to the disk, then
    renamed.

    Raises UsageError where `path` exists (unless `replace`) or cannot be written: the old file is untouched,
    no temporary file stays.
    """
    if not replace and path.exists():
        raise UsageError(f"{path} exists already and is not overwritten: move it away or write elsewhere")
    text = json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    temporary: str | None = None
    try:
        prefix = f".{path.name}.{os.getpid()}."
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=prefix, suffix=".tmp", delete=False
        ) as handle:
            temporary = handle.name
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        _place(temporary, path, replace)
        temporary = None
        _sync_folder(path.parent)
    except FileExistsError:
        raise UsageError(
            f"{path} exists already and is not overwritten: move it away or write elsewhere"
        ) from None
    except OSError as error:
        raise cannot("write", path, error) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    return path


def sweep(folder: Path) -> None:
    """Remove what a writer that was killed left behind: temporary files of `write_document` whose process is
    no more.
    """
    for path in folder.glob(".*.json.*.tmp"):
        with contextlib.suppress(OSError, ValueError):
            if not _is_running(int(path.name.split(".")[-3])):
                path.unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _place(temporary: str, path: Path, replace: bool) -> None:
    """Give the finished file its name. A hard link refuses to overwrite even where two writers race; not
    every file system has them.
    """
    if not replace:
        try:
            os.link(temporary, path)
            os.unlink(temporary)
            return
        except FileExistsError:
            raise
        except OSError:
            pass
    os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(
        OSError
    ):  # some file systems cannot sync a folder; the file itself is on the disk
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_document(path: Path) -> dict[str, Any]:
    """A JSON object from a file; UsageError for a missing, unreadable, half-written or other file."""
    value = read_value(path)
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def read_value(path: Path) -> Any:
    """Any JSON value from a file, within the bounds of `read_text` and `parse_json`; UsageError as above."""
    if not os.path.lexists(path):
        raise UsageError(f"{path} does not exist")
    try:
        return parse_json(read_text(path, LARGEST), shorten(str(path)))
    except json.JSONDecodeError:
        raise UsageError(
            f"{path} is not a complete JSON document: it may be half-written or another kind of file"
        ) from None


def write_gzip(path: Path, document: Mapping[str, Any]) -> Path:
    """Write a compact JSON document, compressed, under its name only once it is whole; an existing file is
    replaced.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with gzip.open(
            temporary, "wb", compresslevel=1
        ) as handle:  # event lists are long: a case has seconds, not minutes
            handle.write(json.dumps(document, separators=(",", ":")).encode())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise cannot("write", path, error) from None
    return path


def append_line(path: Path, document: Mapping[str, Any]) -> None:
    """Append one compact JSON line and flush it to the disk; a line torn by an earlier kill is closed first
    and spoils only itself.
    """
    line = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with open(path, "ab+") as handle:
            if handle.tell() and (handle.seek(-1, os.SEEK_END), handle.read(1))[1] != b"\n":
                line = "\n" + line
            handle.write(line.encode())
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise cannot("write", path, error) from None


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(line number, object) of a JSON-lines file; None for a line that is no complete object."""
    try:
        with open_regular(path) as handle:
            for number in itertools.count(1):
                line = handle.readline(LARGEST + 1)
                if not line:
                    return
                if len(line) > LARGEST:
                    raise UsageError(f"{path}, line {number} has more than {LARGEST:,} bytes")
                if line.strip():
                    yield number, _object(line, f"{path}, line {number}")
    except OSError as error:
        raise cannot("read", path, error) from None


def _object(line: bytes, name: str) -> dict[str, Any] | None:
    try:
        value = parse_json(line.decode("utf-8", errors="replace"), name)
    except (json.JSONDecodeError, UsageError):
        return None
    return value if isinstance(value, dict) else None


def line_of(text: str, message: str) -> int | None:
    """The 1-based line of the key that a message begins with (`moments[1].name is ...`) in a document as
    `write_document` indents it, one space a level; None where it is not found. JSON parsers keep no lines.
    """
    path = re.match(r"[\w.\[\]-]+", message)
    lines, at, depth = text.splitlines(), 0, 0
    for part in path.group().split(".") if path else ():
        name, _, index = part.partition("[")
        depth += 1
        starts = [f'{" " * depth}"{name}":']
        if index.rstrip("]").isdigit():
            depth += 1
            starts += [f"{' ' * depth}{{"] * (int(index.rstrip("]")) + 1)
        for start in starts:
            at = next((n for n in range(at, len(lines)) if lines[n].startswith(start)), -1) + 1
            if at == 0:
                return None
    return at or None
