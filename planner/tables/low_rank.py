"""How an optimizer of low rank projects the gradient of a matrix of M x N entries."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

ALL, ALL_BUT_HEAD = "all-linear", "all-but-head"
"""Targets by kind: every nn.Linear, the output projection among them (transformers 5.24 trainer_optimizer.py
_setup_low_rank_optimizer), or without it (LLaMA-Factory 0.9.5 train/trainer_utils.py: all).
"""


class Projector(NamedTuple):
    """`right`: the gradient's columns become `rank` many, else its rows do."""

    rank: int
    right: bool


def projector(rank: int, kind: str, shape: tuple[int, int], bounded: bool) -> Projector:
    """The projector of a matrix: `kind` is proj_type; `bounded`: it has no more vectors than the matrix has
    (galore-torch 1.0 galore_projector.py project; apollo-torch 1.0.3 random_projector.py project).
    """
    tall = shape[0] >= shape[1]
    right = {"std": tall, "reverse_std": not tall}.get(kind, kind == "right")
    return Projector(min(rank, *shape) if bounded else rank, right)


def targets(names: Sequence[str], module: str, is_head: bool) -> bool:
    """Whether the linear layer of a name is projected (transformers 5.24 trainer_utils.py
    check_target_module_exists): a part of its name, or a regular expression for all of it.
    """
    if ALL in names or ALL_BUT_HEAD in names:
        return ALL in names or not is_head
    return any(name in module or re.fullmatch(name, module) is not None for name in names)


def no_expression(names: Sequence[str]) -> str | None:
    """The first name that is no regular expression; None where all are."""
    for name in names:
        try:
            re.compile(name)
        except re.error:
            return name
    return None


def no_layer(names: Sequence[str]) -> str:
    """What is said where no linear layer of a model is projected."""
    return (
        f"optim_targets {','.join(names)}: no nn.Linear of this model has such a name, use parts of their names, "
        "all-linear, or an optimizer such as adamw_torch"
    )
