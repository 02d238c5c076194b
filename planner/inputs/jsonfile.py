"""read_json: a JSON object from a small file; every way in which that fails is one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memplan.planner.tables.errors import UsageError, shorten

MOST_BYTES = 10_000_000


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most 10 MB. Raises UsageError naming the file and what is wrong with it."""
    try:
        if not path.is_file():
            raise UsageError(f"'{shorten(str(path))}' is not a file")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UsageError(f"'{shorten(str(path))}' has {size:,} bytes: expected at most {MOST_BYTES:,}")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read '{shorten(str(path))}': {error.strerror or error}") from None
    except json.JSONDecodeError as error:
        raise UsageError(
            f"'{shorten(str(path))}' is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except ValueError:
        raise UsageError(
            f"'{shorten(str(path))}' is not JSON: not UTF-8 text, or a number of thousands of digits"
        ) from None
    except RecursionError:
        raise UsageError(f"'{shorten(str(path))}' is nested too deeply") from None
    if not isinstance(value, dict):
        raise UsageError(
            f"'{shorten(str(path))}' holds a JSON {type(value).__name__}, expected an object with keys and "
            "values"
        )
    return value
