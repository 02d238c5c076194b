"""A request to end (SIGTERM: timeout, a batch system, a container) ends a command as Ctrl-C does: children
first, nothing half-written.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def ends_like_ctrl_c() -> Iterator[None]:
    """Within it, SIGTERM raises KeyboardInterrupt. Outside the main thread signals stay as they are."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
