"""Rows that a prediction's own pattern leads one to expect: a tensor that has a gradient and one state, while
its like have two.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from memplan.planner.prediction import Row

_TENSOR = re.compile(
    r".*?\.(?:lora_[A-Z]+|weight|bias)\b"
)  # of one word: up to the first part that names a tensor
_WRAPPED = "base_model.model."  # PEFT's prefix, which weights carry and operations do not
_LEAST = 3  # tensors that must play a role before another is expected to


@dataclass(frozen=True)
class Role:
    """What rows of many tensors have in common: the words around the tensor's name, and the component."""

    component: str
    after: str
    kind: str  # adapter or weight: their states differ in dtype


def _read(row: Row) -> tuple[str, Role] | None:
    """The tensor that a row is about (in its last word that names one) and its role; None where the row names
    no tensor.
    """
    words = row.name.split(" ")
    for at in range(len(words) - 1, -1, -1):
        match = _TENSOR.match(words[at])
        if match:
            tensor = match.group().removeprefix(_WRAPPED)
            after = " ".join([words[at][match.end() :], *words[at + 1 :]]).strip()
            return tensor, Role(row.component, after, "adapter" if "lora_" in tensor else "weight")
    return None


def expected_rows(rows: Mapping[str, Sequence[Row]]) -> list[dict[str, Row]]:
    """For each role that most tensors of a kind play and one tensor does not: its row at every moment where
    its like have one.
    """
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
            missing = [tensor for tensor in tensors if tensor not in have]
            expected += [
                rows for tensor in missing for rows in _like(shapes[tensor, role.kind], tensor, role, have)
            ]
    return expected


def _like(
    known: Row, tensor: str, role: Role, siblings: Mapping[str, Mapping[str, Row]]
) -> list[dict[str, Row]]:
    """The rows of `tensor` in `role`, of the usual dtype: one set for each pattern of moments and counts that
    its siblings show.
    """
    usual = Counter(row.dtype for rows in siblings.values() for row in rows.values()).most_common(1)[0][0]
    joint = "" if role.after[:1] in (".", ":") else " "
    name = f"{tensor}{joint}{role.after}".strip()
    patterns: dict[tuple[tuple[str, int], ...], dict[str, Row]] = {}
    for rows in siblings.values():
        if all(row.dtype == usual and prod(row.shape) for row in rows.values()):
            sized = {m: row.charged * prod(known.shape) // prod(row.shape) for m, row in rows.items()}
            patterns[tuple(sized.items())] = {
                m: replace(
                    row,
                    name=name,
                    shape=known.shape,
                    bytes=sized[m],
                    block_bytes=None,
                    why="its like have one",
                )
                for m, row in rows.items()
            }
    return list(patterns.values())
