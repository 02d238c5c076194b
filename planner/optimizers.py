"""OPTIMIZERS: the state tensors that each optimizer keeps per trainable tensor, by Hugging Face name.

Adding an optimizer is adding a row here; a test compares the row's bytes with `optimizer.state` after one traced step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rule = Literal["like", "float32", "blockwise8", "step", "factored", "none"]
"""How a state's size follows from its parameter of n elements:
like        zeros_like(p): n elements of p's dtype
float32     n fp32 elements
blockwise8  n uint8 elements and ceil(n / 256) fp32 block constants; below 4,096 elements 32-bit (bitsandbytes optim/optimizer.py)
step        one fp32 scalar on the device (fused torch optimizers; the others keep it on the host)
factored    Adafactor's row and column means for 2-D tensors, n fp32 elements for others (transformers optimization.py)
"""
Mode = Literal["foreach", "fused", "loop"]


@dataclass(frozen=True, slots=True)
class Optimizer:
    """One optimizer: its states per trainable tensor and how its step walks the tensors (`modes`, default first)."""

    name: str
    states: tuple[tuple[str, Rule], ...]
    modes: tuple[Mode, ...]
    library: Literal["torch", "bitsandbytes", "transformers"]
    paged: bool = False
    source: str = ""


def _table(*rows: Optimizer) -> dict[str, Optimizer]:
    return {row.name: row for row in rows}


_ADAM_LIKE: tuple[tuple[str, Rule], ...] = (("exp_avg", "like"), ("exp_avg_sq", "like"))
_ADAM_32: tuple[tuple[str, Rule], ...] = (("state1", "float32"), ("state2", "float32"))
_ADAM_8: tuple[tuple[str, Rule], ...] = (("state1", "blockwise8"), ("state2", "blockwise8"))
_BNB = "bitsandbytes 0.50 optim/optimizer.py Optimizer2State.init_state"
_BNB1 = "bitsandbytes 0.50 optim/optimizer.py Optimizer1State.init_state"

OPTIMIZERS: dict[str, Optimizer] = _table(
    Optimizer("adamw_torch", _ADAM_LIKE, ("foreach", "loop"), "torch", source="torch 2.13 optim/adam.py _init_group"),
    Optimizer("adamw_torch_fused", (*_ADAM_LIKE, ("step", "step")), ("fused",), "torch", source="torch 2.13 optim/adam.py _init_group"),
    Optimizer("sgd", (), ("foreach", "loop"), "torch", source="torch 2.13 optim/sgd.py (momentum 0, the Trainer's default)"),
    Optimizer("rmsprop", (("square_avg", "like"),), ("foreach", "loop"), "torch", source="torch 2.13 optim/rmsprop.py"),
    Optimizer("adagrad", (("sum", "like"),), ("foreach", "loop"), "torch", source="torch 2.13 optim/adagrad.py"),
    Optimizer("adafactor", (("factors", "factored"),), ("loop",), "transformers", source="transformers 5.23 optimization.py Adafactor"),
    Optimizer("adamw_bnb_8bit", _ADAM_8, ("loop",), "bitsandbytes", source=_BNB),
    Optimizer("adamw_8bit", _ADAM_8, ("loop",), "bitsandbytes", source=_BNB),
    Optimizer("paged_adamw_8bit", _ADAM_8, ("loop",), "bitsandbytes", paged=True, source=_BNB),
    Optimizer("paged_adamw_32bit", _ADAM_32, ("loop",), "bitsandbytes", paged=True, source=_BNB),
    Optimizer("lion_32bit", (("state1", "float32"),), ("loop",), "bitsandbytes", source=_BNB1),
    Optimizer("lion_8bit", (("state1", "blockwise8"),), ("loop",), "bitsandbytes", source=_BNB1),
    Optimizer("paged_lion_32bit", (("state1", "float32"),), ("loop",), "bitsandbytes", paged=True, source=_BNB1),
    Optimizer("paged_lion_8bit", (("state1", "blockwise8"),), ("loop",), "bitsandbytes", paged=True, source=_BNB1),
)
