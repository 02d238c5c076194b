"""Optimizers without a row: transformers' other names, and what to plan with instead."""

from __future__ import annotations

from memplan.planner.tables.errors import UsageError, unknown
from memplan.planner.tables.optimizers import OPTIMIZERS

_ELSEWHERE = "plan with adamw_torch, which is AdamW for CUDA GPUs"
WITHOUT_A_RULE: dict[str, tuple[str, str]] = {
    "adamw_torch_xla": ("AdamW of torch_xla, for TPUs", _ELSEWHERE),
    "adamw_torch_npu_fused": ("AdamW of torch_npu, for Ascend NPUs", _ELSEWHERE),
    # transformers 5.24 trainer_optimizer.py makes each parameter's GaLoreAdafactor without the arguments that
    # its class wants beside a learning rate: "Cannot combine manual `lr` and `relative_step=True` options"
    "galore_adafactor_layerwise": (
        "its class refuses the Trainer's learning rate, so that no run begins",
        "plan with galore_adafactor and optimizer_in_backward=true",
    ),
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
