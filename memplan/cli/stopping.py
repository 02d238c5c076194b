"""A request to end (SIGTERM: timeout, a batch system, a container) ends a command as Ctrl-C does: children
first, nothing half-written. Ctrl-C ends it wherever it is.
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


RETRY = 0.001


@contextlib.contextmanager
def interrupts_between_deletions() -> Iterator[None]:
    """Within it, Ctrl-C raises KeyboardInterrupt, but not inside a `__del__`, where Python would print and
    forget it: then a moment later. The formula's tape counts deaths in one.
    """

    def interrupt(number: int, frame: Any) -> None:
        while frame is not None:
            if frame.f_code.co_name == "__del__":
                signal.setitimer(signal.ITIMER_REAL, RETRY)
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    if not hasattr(signal, "setitimer") or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # no such timer (Windows), or whoever started us ignores or handles it
        return
    try:
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.signal(signal.SIGINT, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, before)
