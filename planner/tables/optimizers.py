"""OPTIMIZERS: the state tensors that each optimizer keeps per trainable tensor, by Hugging Face name.

Adding an optimizer is adding a row here; a test compares the row's bytes with `optimizer.state` after traced
steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memplan.planner.tables.errors import UsageError, nearest, unknown

Rule = Literal["like", "float32", "blockwise8", "pair32", "pair8", "step", "factored", "none"]
"""How a state's size follows from its parameter of n elements:
like        zeros_like(p): n elements of p's dtype
float32     n fp32 elements
blockwise8  n uint8 elements and ceil(n / 256) fp32 block constants; below 4,096 elements 32-bit (bitsandbytes optim/optimizer.py)
pair32      two of float32, stacked: AdEMAMix's fast and slow averages (bitsandbytes optim/ademamix.py)
pair8       two of blockwise8, stacked, with two rows of block constants (the same file)
step        one fp32 scalar on the device (fused torch optimizers; the others keep it on the host)
factored    Adafactor's row and column means for 2-D tensors, n fp32 elements for others (transformers optimization.py)
"""
Mode = Literal["foreach", "fused", "loop"]


@dataclass(frozen=True, slots=True)
class Optimizer:
    """One optimizer: its states per trainable tensor and how its step walks the tensors (`modes`, default
    first).
    """

    name: str
    states: tuple[tuple[str, Rule], ...]
    modes: tuple[Mode, ...]
    library: Literal["torch", "bitsandbytes", "transformers"]
    paged: bool = False
    source: str = ""
    at_once: bool = False  # its states are made with it, not in its first step

    @property
    def floors(self) -> bool:
        """Whether the number of a tensor's elements decides how a state is kept: in 8 bits, or in pageable
        memory.
        """
        return self.paged or any(rule in ("blockwise8", "pair8") for _, rule in self.states)


def _table(*rows: Optimizer) -> dict[str, Optimizer]:
    return {row.name: row for row in rows}


_ADAM_LIKE: tuple[tuple[str, Rule], ...] = (("exp_avg", "like"), ("exp_avg_sq", "like"))
_ADAM_32: tuple[tuple[str, Rule], ...] = (("state1", "float32"), ("state2", "float32"))
_ADAM_8: tuple[tuple[str, Rule], ...] = (("state1", "blockwise8"), ("state2", "blockwise8"))
_MIX_32: tuple[tuple[str, Rule], ...] = (("state1", "pair32"), ("state2", "float32"))
_MIX_8: tuple[tuple[str, Rule], ...] = (("state1", "pair8"), ("state2", "blockwise8"))
_BNB = "bitsandbytes 0.50 optim/optimizer.py Optimizer2State.init_state"
_BNB1 = "bitsandbytes 0.50 optim/optimizer.py Optimizer1State.init_state"
_BNB_MIX = "bitsandbytes 0.50 optim/ademamix.py AdEMAMix.init_state"
_BNB_RMS = "bitsandbytes 0.50 optim/rmsprop.py RMSprop, optim/optimizer.py Optimizer1State.init_state"

OPTIMIZERS: dict[str, Optimizer] = _table(
    Optimizer(
        "adamw_torch", _ADAM_LIKE, ("foreach", "loop"), "torch", source="torch 2.13 optim/adam.py _init_group"
    ),
    Optimizer(
        "adamw_torch_fused",
        (*_ADAM_LIKE, ("step", "step")),
        ("fused",),
        "torch",
        source="torch 2.13 optim/adam.py _init_group",
    ),
    Optimizer(
        "sgd",
        (),
        ("foreach", "loop"),
        "torch",
        source="torch 2.13 optim/sgd.py (momentum 0, the Trainer's default)",
    ),
    Optimizer(
        "rmsprop",
        (("square_avg", "like"),),
        ("foreach", "loop"),
        "torch",
        source="torch 2.13 optim/rmsprop.py",
    ),
    Optimizer(
        "adagrad",
        (("sum", "like"),),
        ("foreach", "loop"),
        "torch",
        source="torch 2.13 optim/adagrad.py",
        at_once=True,
    ),
    Optimizer(
        "adafactor",
        (("factors", "factored"),),
        ("loop",),
        "transformers",
        source="transformers 5.23 optimization.py Adafactor",
    ),
    Optimizer("adamw_bnb_8bit", _ADAM_8, ("loop",), "bitsandbytes", source=_BNB),
    Optimizer("adamw_8bit", _ADAM_8, ("loop",), "bitsandbytes", source=_BNB),
    Optimizer("paged_adamw_8bit", _ADAM_8, ("loop",), "bitsandbytes", paged=True, source=_BNB),
    Optimizer("paged_adamw_32bit", _ADAM_32, ("loop",), "bitsandbytes", paged=True, source=_BNB),
    Optimizer("lion_32bit", (("state1", "float32"),), ("loop",), "bitsandbytes", source=_BNB1),
    Optimizer("lion_8bit", (("state1", "blockwise8"),), ("loop",), "bitsandbytes", source=_BNB1),
    Optimizer(
        "paged_lion_32bit", (("state1", "float32"),), ("loop",), "bitsandbytes", paged=True, source=_BNB1
    ),
    Optimizer(
        "paged_lion_8bit", (("state1", "blockwise8"),), ("loop",), "bitsandbytes", paged=True, source=_BNB1
    ),
    Optimizer("rmsprop_bnb", (("state1", "float32"),), ("loop",), "bitsandbytes", source=_BNB_RMS),
    Optimizer("rmsprop_bnb_32bit", (("state1", "float32"),), ("loop",), "bitsandbytes", source=_BNB_RMS),
    Optimizer("rmsprop_bnb_8bit", (("state1", "blockwise8"),), ("loop",), "bitsandbytes", source=_BNB_RMS),
    Optimizer("ademamix", _MIX_32, ("loop",), "bitsandbytes", source=_BNB_MIX),
    Optimizer("ademamix_8bit", _MIX_8, ("loop",), "bitsandbytes", source=_BNB_MIX),
    Optimizer("paged_ademamix_32bit", _MIX_32, ("loop",), "bitsandbytes", paged=True, source=_BNB_MIX),
    Optimizer("paged_ademamix_8bit", _MIX_8, ("loop",), "bitsandbytes", paged=True, source=_BNB_MIX),
)

WITHOUT_A_RULE = (
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adamw_anyprecision",
    "adamw_torch_4bit",
    "adamw_torch_8bit",
    "galore_adamw",
    "galore_adamw_8bit",
    "galore_adafactor",
    "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise",
    "galore_adafactor_layerwise",
    "lomo",
    "adalomo",
    "grokadamw",
    "schedule_free_radam",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "apollo_adamw",
    "apollo_adamw_layerwise",
    "stable_adamw",
)
"""transformers' other optimizers (5.23 training_args.py OptimizerNames): names that are no mistake, whose
states no row describes.
"""


def unknown_optimizer(name: object) -> UsageError:
    """The error for a name without a row: one of transformers' is not taken for a misspelling."""
    if name not in WITHOUT_A_RULE:
        return unknown("optimizer", name, OPTIMIZERS)
    close = nearest(str(name), OPTIMIZERS)
    tail = (
        f"nearest by name {' or '.join(close)}"
        if close
        else f"expected one of {', '.join(sorted(OPTIMIZERS))}"
    )
    return UsageError(f"transformers knows '{name}', memplan has no rule for it yet: {tail}")
