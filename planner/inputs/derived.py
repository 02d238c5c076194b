"""Fields of a setup that follow from others unless somebody said them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from memplan.planner.inputs import task_rules
from memplan.planner.tables.optimizer_row import Optimizer
from memplan.planner.tables.optimizers import OPTIMIZERS
from memplan.planner.tables.other_optimizers import unknown_optimizer

_FOUR_BIT = ("nf4", "fp4")
_FLAT = "fsdp_version 1, whose flat tensors are of one floating dtype"


def derived(fields: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Fields that follow from others unless somebody said them: (value, what it follows from)."""
    optimizer, dtype, half = fields["optimizer"], fields["weight_dtype"], fields["weight_dtype"] == "float16"
    wide = dtype if fields["autocast"] == "none" else fields["autocast"]
    flat = fields["parallel"] == "fsdp" and fields["fsdp_version"] == 1 and fields["quant_type"] in _FOUR_BIT
    rules: tuple[tuple[str, bool, Callable[[], Any], str], ...] = (
        ("quant_storage", flat, lambda: wide, _FLAT),
        ("kbit_prepare", flat, lambda: False, _FLAT),
        ("optimizer_mode", True, lambda: row_of(optimizer).modes[0], f"optimizer {optimizer}"),
        ("optimizer_in_backward", row_of(optimizer).in_backward, lambda: True, f"optimizer {optimizer}"),
        ("compute_dtype", dtype != "float32", lambda: dtype, "weight_dtype"),
        ("dropout", bool(fields["target_parameters"]), lambda: 0.0, "target_parameters"),
        ("autocast", half and fields["autocast"] != "none", lambda: "float16", "weight_dtype"),
    )
    found = {name: (value(), why) for name, holds, value, why in rules if holds and name not in said}
    found |= _ranks(fields, said)
    found |= {name: value for name, value in task_rules.derived(fields).items() if name not in said}
    if fields["method"] == "inference":
        found["checkpointing"] = ("none", "method inference")
    return found


def _ranks(fields: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """AdaLoRA's two ranks: it starts from `rank` and prunes to half of it, and to no more than it starts
    from.
    """
    rank, first = said.get("rank"), said.get("init_rank")
    found: dict[str, tuple[Any, str]] = {}
    if fields["method"] == "adalora" and first is None and rank is not None:
        found["init_rank"] = (rank, "rank")
        found["target_rank"] = (max(1, rank // 2) if isinstance(rank, int) else rank, "rank")
    elif isinstance(first, int):
        found["target_rank"] = (min(fields["target_rank"] or first, first), "init_rank")
    return {name: value for name, value in found.items() if name not in said}


def following(before: str, optimizer: Any) -> dict[str, Any]:
    """What another optimizer brings with it: its mode, and whether it steps in the backward where either one
    does so by itself.
    """
    row = row_of(optimizer)
    own = row.in_backward or row_of(before).in_backward
    return {
        "optimizer_mode": row.modes[0],
        **({"optimizer_in_backward": row.in_backward} if own else {}),
    }


def row_of(optimizer: Any) -> Optimizer:
    """The row of an optimizer. Raises UsageError for an unknown one."""
    if not isinstance(optimizer, str) or optimizer not in OPTIMIZERS:
        raise unknown_optimizer(optimizer)
    return OPTIMIZERS[optimizer]
