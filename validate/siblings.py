"""Rows that a prediction's own pattern leads one to expect: a tensor that has a gradient and one state, while its like have two."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
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


def expected_rows(rows: Mapping[str, Sequence[Row]]) -> list[dict[str, Row]]:
    """For each role that most tensors of a kind play and one tensor does not: its row at every moment where its like have one."""
    players: dict[Role, dict[str, dict[str, Row]]] = {}  # role -> tensor -> moment -> row
    shapes: dict[tuple[str, str], Row] = {}
    for moment, alive in rows.items():
        for row in alive:
            found = _read(row)
            if found is not None:
                tensor, role = found
                players.setdefault(role, {}).setdefault(tensor, {})[moment] = row
                shapes.setdefault((tensor, role.kind), row)
    expected = []
    for role, have in players.items():
        tensors = [tensor for tensor, kind in shapes if kind == role.kind]
        if len(have) >= _LEAST and 2 * len(have) >= len(tensors):
            expected += [_like(shapes[tensor, role.kind], tensor, role, have) for tensor in tensors if tensor not in have]
    return expected


def _like(known: Row, tensor: str, role: Role, siblings: Mapping[str, Mapping[str, Row]]) -> dict[str, Row]:
    """The rows of `tensor` in `role`: of the dtype, count and bytes an element that a sibling has at each moment."""
    usual = Counter(row.dtype for rows in siblings.values() for row in rows.values()).most_common(1)[0][0]
    model = max((rows for rows in siblings.values() if all(row.dtype == usual for row in rows.values())), key=len, default={})
    name = f"{tensor} {role.after}".strip()
    return {
        moment: replace(
            row,
            name=name,
            shape=known.shape,
            bytes=row.charged * prod(known.shape) // prod(row.shape),
            block_bytes=None,
            why="its like have one",
        )
        for moment, row in model.items()
        if prod(row.shape)
    }
