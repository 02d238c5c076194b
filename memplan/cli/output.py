"""Files that a command writes: looked at before the work starts, written beside and renamed at its end, so
that whatever goes wrong leaves the old file or none; what fails is one message.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from memplan.planner.inputs.textfile import reason
from memplan.planner.tables.errors import UsageError, shorten

OURS = {".html": b"memplan", ".png": b"\x89PNG", ".svg": b"<svg"}
"""Ending -> what a file of ours holds in its first 256 KiB: any other file there is somebody's work."""
LOOKED_AT = 2**18


def check_writable(path: Path) -> None:
    """Raises UsageError where `path` cannot become a file: no such folder, it is a folder itself, or it holds
    what memplan did not write.
    """
    name = shorten(str(path))
    try:
        if path.is_dir():
            raise UsageError(f"cannot write '{name}': it is a folder; name a file in it")
        if not path.resolve().parent.is_dir():
            raise UsageError(f"cannot write '{name}': its folder does not exist")
        if not path.exists():
            return
        if stat.S_ISREG(path.stat().st_mode):
            _check_ours(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write '{name}': {reason(error)}") from None


def _check_ours(path: Path) -> None:
    sign = OURS.get(path.suffix.lower())
    with path.open("rb") as file:
        start = file.read(LOOKED_AT)
    if start and sign is not None and sign not in start:
        raise UsageError(
            f"'{shorten(str(path))}' exists and is not a file that memplan wrote: move it away or name "
            "another"
        )


def write_file(path: Path, content: str | bytes) -> None:
    """`content` under its name only once it is whole; text in UTF-8. A device or a pipe is written to as it
    is. Raises UsageError where the file system refuses.
    """
    check_writable(path)
    data = content.encode("utf-8", errors="replace") if isinstance(content, str) else content
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            _replace(path.resolve(), data)
    except OSError as error:
        raise UsageError(f"cannot write '{shorten(str(path))}': {reason(error)}") from None


def _replace(path: Path, data: bytes) -> None:
    mode = path.stat().st_mode if path.exists() else 0o666 & ~_umask()
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:60]}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.chmod(temporary, stat.S_IMODE(mode))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
