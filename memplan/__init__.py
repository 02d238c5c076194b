"""memplan: predicts, measures and reconciles the GPU memory of fine-tuning runs. The only documented
import.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from memplan.planner import __version__

_HOME = {
    "plan": "memplan.lengths",
    "trace": "memplan.api",
    "profile": "memplan.api",
    "reconcile": "memplan.api",
    "trainer_callback": "memplan.api",
    "fit": "memplan.answers",
    "compare": "memplan.answers",
    "oom": "memplan.answers",
    "Setup": "memplan.planner.inputs.setup",
    "resolve": "memplan.planner.inputs.setup",
    "ModelSpec": "memplan.planner.inputs.spec",
    "find": "memplan.planner.inputs.models",
    "find_gpu": "memplan.planner.tables.gpus",
    "Row": "memplan.planner.prediction",
    "Breakdown": "memplan.planner.prediction",
    "Prediction": "memplan.planner.prediction",
    "Peak": "memplan.planner.prediction",
    "GpuVerdict": "memplan.planner.prediction",
    "Accuracy": "memplan.planner.prediction",
    "MemplanError": "memplan.planner.tables.errors",
    "UsageError": "memplan.planner.tables.errors",
    "NetworkError": "memplan.planner.tables.errors",
    "ToleranceError": "memplan.planner.tables.errors",
}
__all__ = ["__version__", *_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """plan, trace, profile, reconcile and the types are imported when first asked for: start-up stays
    light.
    """
    if name not in _HOME:
        raise AttributeError(f"module 'memplan' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
