"""How far each engine's reserved memory was from runs that others published: the share that widens a verdict.

`reserved_errors.json` is written by `memplan validate --published --update`: P95 of the absolute errors by
engine, method class and checkpointing, as a share of what is predicted, with the number of runs. A run that published only what
nvidia-smi showed counts with its error of device memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from memplan.planner.tables.method_class import method_class

SHIPPED = Path(__file__).with_name("reserved_errors.json")


class ReservedError(NamedTuple):
    """P95 of the absolute errors of reserved, as a share, and how many published runs it is of."""

    p95: float
    runs: int


@cache
def reserved_errors() -> Mapping[tuple[str, str, str], ReservedError]:
    """(engine, method class, checkpointing on or off) -> its error; read once."""
    rows = json.loads(SHIPPED.read_text(encoding="utf-8"))["rows"]
    return {
        (row["engine"], row["method"], row["checkpointing"]): ReservedError(row["p95"], row["runs"])
        for row in rows
    }


def document(rows: Sequence[Mapping[str, Any]]) -> str:
    """The text of reserved_errors.json, a row a line."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    return f'{{"schema": "memplan.reserved_errors/1", "rows": [\n{lines}\n]}}\n'


def reserved_error(
    engine: str, method: str, quant_type: str, checkpointing: str, adapter: Mapping[str, object] | None = None
) -> ReservedError | None:
    """The error of an engine for setups of this class; None where no published run is of it."""
    on = "off" if checkpointing == "none" else "on"
    return reserved_errors().get((engine, method_class(method, quant_type, adapter), on))
