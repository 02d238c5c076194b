"""read_text: a file that a person names, read without trusting it: a regular file, bounded in size, UTF-8.

Every document that is handed over (configs, training files, campaigns, records, claims, setups) comes through
here: a pipe would block, a device never ends, a directory is none.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from memplan.planner.tables.errors import UsageError, shorten


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises UsageError naming the file and what is
    wrong with it.
    """
    name = shorten(str(path))
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(most + 1) if size <= most else b""
    except OSError as error:
        raise UsageError(f"cannot read '{name}': {reason(error)}") from None
    if max(size, len(data)) > most:
        raise UsageError(f"'{name}' has {max(size, len(data)):,} bytes: expected at most {most:,}")
    return data


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened for reading; a pipe, a device or a folder is refused before it can block.
    Raises UsageError.
    """
    name = shorten(str(path))
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        if path.exists() and not path.is_file():
            raise UsageError(
                f"'{name}' is not a file: it is {'a folder' if path.is_dir() else 'a pipe or a device'}"
            )
        descriptor = os.open(path, flags)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # exchanged since
            os.close(descriptor)
            raise UsageError(f"'{name}' is not a file")
    except FileNotFoundError:
        raise UsageError(f"'{name}' is not a file: it does not exist") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read '{name}': {reason(error)}") from None
    return os.fdopen(descriptor, "rb")


def read_text(path: Path, most: int) -> str:
    """The same as text in UTF-8, without a byte order mark."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"'{shorten(str(path))}' is not text: byte {error.start} is not UTF-8") from None


def reason(error: Exception) -> str:
    """Why the file system refused, in its own words."""
    return str(getattr(error, "strerror", None) or type(error).__name__)
