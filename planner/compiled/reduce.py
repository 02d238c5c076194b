"""A log traced with its calls, in two forms: without calls, as a direct trace has it, and without what the
calls' rules will say again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from memplan.planner.trace.events.log import ALLOC, BY_DEPTH, EMPTY, FREE, OF_CALL, Log, Storage


def direct(log: Log) -> Log:
    """The log that the same run makes when its calls are not kept."""
    return _without(log, lambda storage, inside: storage.call not in (None, OF_CALL))


def reduced(log: Log) -> Log:
    """The log without the workspaces of known calls; a call that another depth changes keeps its own, and
    loses its mark.
    """

    def dropped(storage: Storage, inside: Storage | None) -> bool:
        if storage.call == OF_CALL:
            return inside is not None and inside.call != BY_DEPTH
        return bool(storage.call == BY_DEPTH)

    return _without(log, dropped)


def _without(log: Log, dropped: Callable[[Storage, Storage | None], bool]) -> Log:
    """The log without some storages, numbered anew. `dropped` is given a storage and the open call."""
    found = Log()
    numbers: dict[int, int] = {}
    edges = [0]
    calls: list[Storage] = []
    for kind, sid, nbytes in log.events:
        storage = log.storages[sid]
        a_call = kind != EMPTY and storage.call not in (None, OF_CALL)
        if kind == EMPTY:
            found.events.append((EMPTY, -1, 0))
        elif kind == ALLOC and not dropped(storage, calls[-1] if calls else None):
            numbers[sid] = len(found.storages)
            call = storage.call if a_call and storage.call != BY_DEPTH else None
            found.storages.append(
                storage.again(
                    numbers[sid], len(found.events), storage.nbytes, storage.shape, storage.layer, call
                )
            )
            found.events.append((ALLOC, numbers[sid], nbytes))
        elif kind == FREE and sid in numbers:
            found.storages[numbers[sid]].died = len(found.events)
            found.events.append((FREE, numbers[sid], nbytes))
        if a_call and kind == ALLOC:
            calls.append(storage)
        elif a_call:
            calls.pop()
        edges.append(len(found.events))
    found.marks = [replace(mark, begin=edges[mark.begin], end=edges[mark.end]) for mark in log.marks]
    return found
