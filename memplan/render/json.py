"""The JSON documents on standard output: one object, UTF-8, nothing else there."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import IO, Any

from memplan.planner.tables.errors import redacted


def write(document: Mapping[str, Any], stream: IO[str] | None = None) -> None:
    """One document, indented, keys in the contract's order, without tokens; NaN is a defect and raises
    ValueError before anything is written.
    """
    print(redacted(json.dumps(document, indent=2, allow_nan=False)), file=stream or sys.stdout)
