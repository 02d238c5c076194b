"""What is said of kernels that a setup asks for and that have no rule in the model at hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memplan.planner.tables.fused_kernels import LIGER, LORA, LORA_METHODS, without_rule
from memplan.planner.tables.methods import METHODS


def warnings(model_type: str, setup: Any) -> Iterator[str]:
    """Of a family without a row, or a method without a rule: its own operations are counted, which save
    more.
    """
    asked = setup.fused_kernels
    lacking = [name for name in without_rule(model_type, asked) if _saves_less(model_type, name)]
    where = f"in a {model_type} model"
    of_lora = [name for name in asked if name in LORA]
    if METHODS[setup.method].trains != "adapter":
        lacking = [name for name in lacking if name not in LORA]
    elif not lacking and setup.method not in LORA_METHODS:
        lacking, where = of_lora, f"with method {setup.method}"
    if lacking:
        yield (
            f"fused_kernels {','.join(lacking)} are not modeled {where}: its own operations are counted, "
            "which save more, so the prediction errs on the high side"
        )


def _saves_less(model_type: str, name: str) -> bool:
    return name in LORA or model_type not in LIGER


def uncounted(model_type: str, setup: Any) -> tuple[str, ...]:
    """Kernels whose memory is not known, in a family of which others are."""
    return tuple(
        f"Liger's {name} kernel in a {model_type} model"
        for name in without_rule(model_type, setup.fused_kernels)
        if not _saves_less(model_type, name)
    )
