"""What an optimizer in the backward and one of low rank exclude, each with its sentence."""

from __future__ import annotations

from typing import Any

from memplan.planner.tables.errors import shorten
from memplan.planner.tables.low_rank import no_expression
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.optimizers import OPTIMIZERS


def in_backward(s: Any) -> list[tuple[bool, str]]:
    """What an optimizer that steps in the backward excludes: no gradient lives until another place asks."""
    broken = (
        (
            s.gradient_accumulation > 1,
            f"gradient_accumulation {s.gradient_accumulation} has nothing to add to",
        ),
        (s.importance_buffers, "AdaLoRA's importance_buffers are made of gradients after the step"),
        (s.parallel != "none", f"under {s.parallel} it has no rule, use one GPU"),
    )
    said = "optimizer_in_backward frees each gradient as it comes"
    own = OPTIMIZERS[s.optimizer].in_backward and not s.optimizer_in_backward
    return [
        (own, f"optimizer_in_backward false: optimizer '{s.optimizer}' steps there by itself, leave it out"),
        *((s.optimizer_in_backward and holds, f"{said}: {why}") for holds, why in broken),
    ]


def low_rank(s: Any) -> list[tuple[bool, str]]:
    """What an optimizer needs that projects gradients, or that has every parameter of the model."""
    row, strange = OPTIMIZERS[s.optimizer], no_expression(s.optim_targets)
    whole = METHODS[s.method].trains in ("all", "last_layers")
    said = f"optimizer '{s.optimizer}'"
    return [
        (
            row.low_rank and not whole,
            f"{said} projects the gradients of whole matrices, which method '{s.method}' does not train: use "
            "--method full, or adamw_torch",
        ),
        (
            row.low_rank and s.parallel not in ("none", "ddp"),
            f"{said} needs whole gradients, which {s.parallel} divides: use --parallel ddp, or adamw_torch",
        ),
        (
            row.low_rank and not s.optim_targets,
            "optim_targets is empty: expected parts of layers' names such as attn,mlp, or all-linear",
        ),
        (
            row.low_rank and strange is not None,
            f"optim_targets '{shorten(strange or '', 60)}' is no regular expression: use parts of layers' "
            "names such as attn,mlp, or all-linear",
        ),
    ]
