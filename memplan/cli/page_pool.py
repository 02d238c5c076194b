"""The processes that compute pages for `memplan ui`: one a core, replaced after a few pages.

They are forked from a process of its own that has one thread and the imports done (multiprocessing's fork
server), since the server has many threads. A worker is given a model and a complete Setup: it asks no hub and
holds no token. Its pipe is its lifeline: where the server is gone, however it ended, so is the worker.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from memplan.planner.inputs.models import Model
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.errors import MemplanError, UsageError

MOST_WORKERS = 8
LONGEST = 120.0
"""Seconds that one page may take, the trace of a family that the formula lacks included (a minute)."""
PAGES_EACH = 8
"""Pages of one worker: each leaves up to 80 MiB of structures, kept for the next of the same model."""
PRELOAD = ("memplan.cli.report", "memplan.render.html", "memplan.planner.formula.replay.course")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

Make = Callable[[Model, Setup], str]


class Busy(MemplanError):
    """The page was not computed, and may be later: a 503."""


class Defect(RuntimeError):
    """What a worker raised that is no MemplanError, as its traceback says it."""


def page(model: Model, setup: Setup) -> str:
    """The report page of one model under one Setup."""
    from memplan.cli.report import page_of
    from memplan.cli.subject import Subject

    return page_of(Subject(model, setup))


def cores() -> int:
    """Cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def can_fork() -> bool:
    """Whether this system has a fork server (Windows has none)."""
    return "forkserver" in multiprocessing.get_all_start_methods()


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    connection: Connection
    pages: int = 0

    def end(self) -> None:
        """End it, whatever it does."""
        self.connection.close()
        self.process.kill()
        self.process.join(5)


class Pool:
    """`compute` in worker processes, as many at once as there are workers; the others wait their turn. Where
    nothing can be forked, in the thread that asks, one at a time.
    """

    def __init__(self, count: int | None = None, make: Make = page, longest: float = LONGEST) -> None:
        self.count = (count or min(MOST_WORKERS, cores())) if can_fork() else 1
        self._make, self._longest = make, longest
        self._places: queue.Queue[_Worker | None] = queue.Queue()
        for _ in range(self.count):
            self._places.put(None)
        self._lock, self._closed = threading.Lock(), False
        self._workers: set[_Worker] = set()

    def warm(self) -> None:
        """Start what workers are forked from; it imports while nobody waits."""
        if can_fork():
            from multiprocessing.forkserver import ensure_running, set_forkserver_preload

            set_forkserver_preload([*PRELOAD])
            ensure_running()

    def compute(self, model: Model, setup: Setup) -> str:
        """The page. Raises what `make` raises; Busy where it takes too long or its worker was ended."""
        place = self._places.get()
        try:
            if not can_fork():
                return self._make(model, setup)
            place = place if place is not None and place.process.is_alive() else self._replaced(place)
            kind, text = self._asked(place, model, setup)
            place.pages += 1
            if place.pages >= PAGES_EACH:
                self._end(place)
                place = None
        except Busy:
            self._end(place)
            place = None
            raise
        finally:
            self._places.put(place)
        if kind == "refused":
            raise UsageError(text)
        if kind == "defect":
            raise Defect(text)
        return text

    def close(self) -> None:
        """End every worker; nothing is computed from now on."""
        with self._lock:
            self._closed = True
            workers = list(self._workers)
        for worker in workers:
            self._end(worker)

    def pids(self) -> list[int]:
        """The workers' process ids."""
        return [worker.process.pid for worker in list(self._workers) if worker.process.pid is not None]

    def _asked(self, worker: _Worker, model: Model, setup: Setup) -> tuple[str, str]:
        try:
            worker.connection.send((model, setup))
            if not worker.connection.poll(self._longest):
                raise Busy(
                    f"this page took longer than {self._longest:.0f} s and was stopped: memplan report has "
                    "no such limit"
                )
            kind, text = worker.connection.recv()
        except (OSError, EOFError):
            raise Busy("the process computing this page was stopped: try again") from None
        return kind, text

    def _replaced(self, worker: _Worker | None) -> _Worker:
        self._end(worker)
        with self._lock:
            if self._closed:
                raise Busy("memplan ui is closing")
            made = _start(self._make)
            self._workers.add(made)
            return made

    def _end(self, worker: _Worker | None) -> None:
        with self._lock:
            if worker in self._workers and worker is not None:
                self._workers.discard(worker)
                worker.end()


def _start(make: Make) -> _Worker:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD])
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, make), daemon=True, name="memplan page")
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _work(connection: Connection, make: Make) -> None:
    """What a worker does until its pipe ends."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all: the server ends us
    without_hub()
    gc.freeze()
    gc.disable()  # a fifth of a page's time goes into it, and a worker's pages are few
    inbox: queue.SimpleQueue[tuple[Model, Setup]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    while True:
        answer = _answer(make, *inbox.get())
        with contextlib.suppress(OSError):
            connection.send(answer)


def without_hub() -> None:
    """Whatever this process computes from now on, it asks no hub and has no token for one."""
    for name in TOKENS:
        os.environ.pop(name, None)
    os.environ["HF_HUB_OFFLINE"] = "1"


def _listen(connection: Connection, inbox: queue.SimpleQueue[tuple[Model, Setup]]) -> None:
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


def _answer(make: Make, model: Model, setup: Setup) -> tuple[str, str]:
    try:
        return "page", make(model, setup)
    except MemplanError as error:
        return "refused", str(error)
    except Exception:
        return "defect", traceback.format_exc()
