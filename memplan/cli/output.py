"""Files that a command writes: looked at before the work starts, written at its end; what fails is one
message.
"""

from __future__ import annotations

from pathlib import Path

from memplan.planner.tables.errors import UsageError, shorten


def check_writable(path: Path) -> None:
    """Raises UsageError where `path` cannot become a file: no such folder, or it is a folder itself."""
    if path.is_dir():
        raise UsageError(f"cannot write '{shorten(str(path))}': it is a folder; name a file in it")
    if not path.resolve().parent.is_dir():
        raise UsageError(f"cannot write '{shorten(str(path))}': its folder does not exist")


def write_file(path: Path, text: str) -> None:
    """`text` in UTF-8. Raises UsageError where the file system refuses."""
    check_writable(path)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write '{shorten(str(path))}': {error.strerror or error}") from None
