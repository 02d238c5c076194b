"""Mixture-of-experts layers on the tape."""

from __future__ import annotations

from planner.errors import UsageError
from planner.spec import Moe
from planner.tape import Tensor
from planner.walk import Walk


def mixture(w: Walk, moe: Moe, given: Tensor, prefix: str) -> Tensor:
    raise UsageError("the formula has no rule yet for mixtures of experts: use --engine trace")
