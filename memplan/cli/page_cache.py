"""Pages by what was asked: those that were computed, those that are being computed, and no more of either
than there is room for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from memplan.cli.page_pool import Busy

Key = tuple[str, ...]
MOST_KEPT = 64
"""Pages, oldest first: a hundred kilobytes each."""
MOST_COMPUTED = 32
"""Different pages that are being computed or wait for it: a minute's work of two cores."""
MOST_WAITING = 128
"""Requests that wait for one of them: fewer than the server's threads, which serve known pages meanwhile."""


class Pages:
    """`get` computes each page once, whoever else asks for it meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Key, str] = {}
        self._computed: dict[Key, Future[str]] = {}
        self._waiting = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget every page."""
        with self._lock:
            self._kept.clear()

    def get(self, key: Key, compute: Callable[[], str]) -> str:
        """The page of a key. Raises what `compute` raises, for all who wait for it, and keeps no failure;
        Busy where too many pages or requests wait.
        """
        with self._lock:
            if key in self._kept:
                return self._kept[key]
            found, first = self._computed.get(key), key not in self._computed
            if self._waiting >= MOST_WAITING or first and len(self._computed) >= MOST_COMPUTED:
                raise Busy("too many pages are being computed: try again in a moment")
            if found is None:
                found = self._computed[key] = Future()
            self._waiting += 1
        try:
            if first:
                self._fill(key, found, compute)
            return found.result()
        finally:
            with self._lock:
                self._waiting -= 1

    def _fill(self, key: Key, found: Future[str], compute: Callable[[], str]) -> None:
        try:
            text = compute()
        except BaseException as error:
            with self._lock:
                del self._computed[key]
            found.set_exception(error)
            return
        with self._lock:
            del self._computed[key]
            while len(self._kept) >= MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = text
        found.set_result(text)
