"""What is said of kernels that a setup asks for and that have no rule in the model at hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memplan.planner.tables.fused_kernels import LIGER, without_rule


def warnings(model_type: str, setup: Any) -> Iterator[str]:
    """Of a family without a row: its own operations are counted, which save more."""
    if setup.fused_kernels and model_type not in LIGER:
        yield (
            f"fused_kernels {','.join(setup.fused_kernels)} are not modeled in a {model_type} model: its own "
            "operations are counted, which save more, so the prediction errs on the high side"
        )


def uncounted(model_type: str, setup: Any) -> tuple[str, ...]:
    """Of a family with one: kernels whose memory is not known."""
    if model_type not in LIGER:
        return ()
    return tuple(
        f"Liger's {name} kernel in a {model_type} model"
        for name in without_rule(model_type, setup.fused_kernels)
    )
