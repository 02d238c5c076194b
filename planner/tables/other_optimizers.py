"""Optimizers without a row: transformers' other names, and what to plan with instead."""

from __future__ import annotations

from memplan.planner.tables.errors import UsageError, unknown
from memplan.planner.tables.optimizers import OPTIMIZERS

_LOW_RANK = "AdamW or Adafactor with states of low rank for the matrices that optim_target_modules names"
_SMALLER = (
    "plan with adamw_torch, whose states are larger at such a rank; adamw_8bit has small ones of all tensors"
)
_ELSEWHERE = "plan with adamw_torch, which is AdamW for CUDA GPUs"
_NO_STATES = "SGD within the backward, without states or whole gradients"
WITHOUT_A_RULE: dict[str, tuple[str, str]] = {
    "adamw_torch_xla": ("AdamW of torch_xla, for TPUs", _ELSEWHERE),
    "adamw_torch_npu_fused": ("AdamW of torch_npu, for Ascend NPUs", _ELSEWHERE),
    **dict.fromkeys(("galore_adamw", "galore_adafactor"), (f"GaLore: {_LOW_RANK}", _SMALLER)),
    "galore_adamw_8bit": (f"GaLore: {_LOW_RANK}, in 8 bits", _SMALLER),
    **dict.fromkeys(
        ("galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"),
        (f"GaLore in the backward: {_LOW_RANK}", _SMALLER),
    ),
    "lomo": (f"LOMO: {_NO_STATES}", "plan with sgd and optimizer_in_backward=true"),
    "adalomo": (
        f"AdaLomo: {_NO_STATES} but factored ones",
        "plan with adafactor and optimizer_in_backward=true",
    ),
    "apollo_adamw": (f"APOLLO: {_LOW_RANK}", _SMALLER),
    "apollo_adamw_layerwise": (f"APOLLO in the backward: {_LOW_RANK}", _SMALLER),
}
"""transformers' other optimizers (5.23 training_args.py OptimizerNames, trainer_optimizer.py), names that are no
mistake and whose states no row describes: what each is, and what to do.
"""


def unknown_optimizer(name: object) -> UsageError:
    """The error for a name without a row: one of transformers' is not taken for a misspelling."""
    if not isinstance(name, str) or name not in WITHOUT_A_RULE:
        return unknown("optimizer", name, OPTIMIZERS)
    what, instead = WITHOUT_A_RULE[name]
    return UsageError(f"optimizer '{name}' has no rule yet ({what}): {instead}")
