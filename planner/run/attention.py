"""What a Setup.attention asks of transformers, and of torch on a real device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel

from memplan.planner.tables.sdp import FORCED


def implementation(attention: str) -> str:
    """transformers' `attn_implementation` for a Setup.attention: every sdpa setting is its own "sdpa"."""
    return "sdpa" if attention.startswith("sdpa") else attention


def on_device(attention: str) -> AbstractContextManager[Any]:
    """What a real device needs for a Setup.attention: torch's own switch for a forced backend, else
    nothing.
    """
    if attention not in FORCED:
        return nullcontext()
    names = {
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }
    switch: AbstractContextManager[Any] = sdpa_kernel([names[FORCED[attention]]])
    return switch
