"""The kind of method and base that one setup's errors are grouped by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.planner.tables.methods import METHODS

_OF_LORA = ("lora", "qlora", "rslora", "lora+")  # the same tensors but for the base's
_BASES = {"none": "", "nf4": " on a 4-bit base", "fp4": " on a 4-bit base", "int8": " on an int8 base"}


def method_class(method: str, quant_type: str, adapter: Mapping[str, Any] | None = None) -> str:
    """What is trained, and on which base: `lora on a 4-bit base` for qlora; a PEFT file's type by its name."""
    if adapter is not None:
        trained = str(adapter.get("peft_type", "?"))
    else:
        trained = "lora" if method in _OF_LORA else METHODS[method].name
    return trained + _BASES.get(quant_type, f" on a {quant_type} base")
