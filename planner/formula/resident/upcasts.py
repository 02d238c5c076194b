"""Which base weights a stack keeps in fp32 once they are loaded."""

from __future__ import annotations

from collections.abc import Callable

from memplan.planner.formula.resident.tensors import WeightTensor
from memplan.planner.tables.upcasts import returns, routes


def _norm(tensor: WeightTensor) -> bool:
    return tensor.role == "norm" and "norm" in tensor.name.split(".")[-2]  # GPT-2's ln_1 is not


UPCAST: dict[str, Callable[[WeightTensor], bool]] = {
    "none": lambda tensor: False,
    "norms": _norm,
    "norms_and_embeddings": lambda tensor: tensor.role in ("embedding", "head") or _norm(tensor),
    "routers": lambda tensor: routes(tensor.module),
    "unquantized": lambda tensor: not returns(tensor.module),
}
"""By `upcast_modules`: whether a tensor that is not quantized stays in fp32."""
