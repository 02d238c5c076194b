"""memplan: predicts, measures and reconciles the GPU memory of fine-tuning runs. The only documented import."""

from __future__ import annotations

from typing import Any

from planner import __version__

__all__ = ["__version__"]


def __getattr__(name: str) -> Any:
    """plan, trace, profile, reconcile and the types are imported when first asked for: start-up stays light."""
    raise AttributeError(f"module 'memplan' has no attribute '{name}'")
