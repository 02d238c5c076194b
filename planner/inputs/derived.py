"""Fields of a setup that follow from others unless somebody said them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from memplan.planner.inputs import task_rules
from memplan.planner.tables.optimizers import OPTIMIZERS
from memplan.planner.tables.other_optimizers import unknown_optimizer


def derived(fields: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Fields that follow from others unless somebody said them: (value, what it follows from)."""
    optimizer, dtype, half = fields["optimizer"], fields["weight_dtype"], fields["weight_dtype"] == "float16"
    rules: tuple[tuple[str, bool, Callable[[], Any], str], ...] = (
        ("optimizer_mode", True, lambda: mode_of(optimizer), f"optimizer {optimizer}"),
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


def mode_of(optimizer: Any) -> str:
    """The mode in which an optimizer runs where nobody names one. Raises UsageError for an unknown one."""
    if not isinstance(optimizer, str) or optimizer not in OPTIMIZERS:
        raise unknown_optimizer(optimizer)
    return OPTIMIZERS[optimizer].modes[0]
