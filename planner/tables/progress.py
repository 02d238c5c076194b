"""What a long computation says of where it is: heard where somebody listens, free where nobody does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str], None]
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


def tell(text: str) -> None:
    """Say what is being done now, such as 'step 1 of 2, forward, layer 3 of 4'."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(text)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within it, `listener` hears what this thread's computations tell, and nobody else does."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


@contextmanager
def telling(name: str) -> Iterator[None]:
    """Within it, what is told is part of `name`: a method, a claim, a size."""
    outer = _LISTENER.get()
    if outer is None:
        yield
        return
    outer(name)
    with listening(lambda text: outer(f"{name}: {text}")):
        yield
