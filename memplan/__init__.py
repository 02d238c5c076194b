"""memplan: predicts, measures and reconciles the GPU memory of fine-tuning runs. The only documented import."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from planner import __version__

_HOME = {
    "plan": "memplan.api", "trace": "memplan.api", "profile": "memplan.api", "reconcile": "memplan.api",
    "trainer_callback": "memplan.api",
    "Setup": "planner.setup", "resolve": "planner.setup", "ModelSpec": "planner.spec", "find": "planner.models", "find_gpu": "planner.gpus",
    "Row": "planner.breakdown", "Breakdown": "planner.breakdown", "Prediction": "planner.breakdown", "Peak": "planner.breakdown",
    "GpuVerdict": "planner.breakdown", "Accuracy": "planner.breakdown",
    "MemplanError": "planner.errors", "UsageError": "planner.errors", "NetworkError": "planner.errors", "ToleranceError": "planner.errors",
}  # fmt: skip
__all__ = ["__version__", *_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """plan, trace, profile, reconcile and the types are imported when first asked for: start-up stays light."""
    if name not in _HOME:
        raise AttributeError(f"module 'memplan' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
