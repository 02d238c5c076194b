"""The libraries that the trace engine and the profiler run, asked for before they are imported."""

from __future__ import annotations

import logging
from importlib.util import find_spec

from planner.errors import UsageError

TRACE = ("torch", "transformers", "peft", "accelerate")
BITSANDBYTES = ("bitsandbytes",)


def require(*names: str) -> None:
    """UsageError with the exact install command where one of `names` (default: what every trace needs) is not installed."""
    missing = [name for name in names or TRACE if find_spec(name) is None]
    if missing:
        raise UsageError(f"{', '.join(missing)} not installed: the trace engine runs the real libraries; pip install 'memplan[trace]'")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on import it warns of CPU kernels that it lacks: nothing about memory
