"""A request to end (SIGTERM: timeout, a batch system, a container) ends a command as Ctrl-C does: children
first, nothing half-written. Ctrl-C ends it wherever it is.
"""

from __future__ import annotations

import contextlib
import signal
import sys
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
def interrupts_are_heard() -> Iterator[None]:
    """Within it, Ctrl-C raises KeyboardInterrupt wherever it comes. In a `__del__` or a weak reference's
    callback Python would print and forget it: there it is raised again a moment later. The formula's tape and
    the trace count deaths in them.
    """

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    def unraisable(error: Any) -> None:
        if issubclass(error.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, RETRY)
        else:
            others(error)

    if not hasattr(signal, "setitimer") or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # no such timer (Windows), or whoever started us ignores or handles it
        return
    try:
        before = signal.signal(signal.SIGALRM, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    others, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = others
        signal.signal(signal.SIGALRM, before)
