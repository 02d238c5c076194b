"""Rows that a prediction's own pattern leads one to expect: a tensor that has a gradient and one state, while its like have two."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from planner.breakdown import Row

_TENSOR = re.compile(r"\S*\.(?:weight|bias|lora_[A-Z]+)\b")
_LEAST = 3  # tensors that must play a role before another is expected to


@dataclass(frozen=True)
class Role:
    """What rows of many tensors have in common: the words around the tensor's name, and the component."""

    component: str
    after: str
    kind: str  # adapter or weight: their states differ in dtype


def _read(row: Row) -> tuple[str, Role] | None:
    """The tensor that a row is about (the last one named) and its role; None where the row names no tensor."""
    matches = list(_TENSOR.finditer(row.name))
    if not matches:
        return None
    last = matches[-1]
    kind = "adapter" if "lora_" in last.group() else "weight"
    return last.group(), Role(row.component, row.name[last.end() :].strip(), kind)


def expected_rows(rows: Iterable[Row]) -> list[Row]:
    """For each role that most tensors of a kind play, a row for each tensor that does not: its shape from its other rows."""
    players: dict[Role, dict[str, Row]] = {}
    shapes: dict[tuple[str, str], Row] = {}
    for row in rows:
        found = _read(row)
        if found is not None:
            tensor, role = found
            players.setdefault(role, {})[tensor] = row
            shapes.setdefault((tensor, role.kind), row)
    expected = []
    for role, have in players.items():
        tensors = [tensor for tensor, kind in shapes if kind == role.kind]
        if len(have) >= _LEAST and 2 * len(have) >= len(tensors):
            expected += [_like(shapes[tensor, role.kind], tensor, role, list(have.values())) for tensor in tensors if tensor not in have]
    return expected


def _like(known: Row, tensor: str, role: Role, siblings: Sequence[Row]) -> Row:
    """The row of `tensor` in `role`, of the dtype and count that its siblings have."""
    dtype = Counter(row.dtype for row in siblings).most_common(1)[0][0]
    model = next(row for row in siblings if row.dtype == dtype)
    whole = prod(model.shape) * model.count
    nbytes = prod(known.shape) * known.count * model.bytes // whole if whole else 0
    name = f"{tensor} {role.after}".strip()
    return replace(model, name=name, shape=known.shape, count=known.count, bytes=nbytes, block_bytes=None, why="its like have one")
