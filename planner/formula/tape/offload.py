"""Activation offloading on the tape: the hooks of `planner/tables/offloaders.py`, saved tensor by saved
tensor, as `planner/run/offloading.py` has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from memplan.planner.formula.tape.nodes import Buffer, Tensor, mark_saved
from memplan.planner.tables.offloaders import OFFLOADERS, SMALLEST, STASH

VIEWS = ("flash attention", "efficient attention", "cudnn attention")
"""Operations whose saved 4-D tensors are transposed views: a contiguous copy of each is sent."""


class Moved:
    """Stands in the graph for a tensor on the host; calling it gives its bytes on the device."""

    __slots__ = ("hook", "number", "tensor")

    def __init__(self, hook: Offload, number: int, tensor: Tensor) -> None:
        self.hook, self.number = hook, number
        self.tensor = Tensor(None, tensor.shape, tensor.dtype, name=tensor.name)

    def __call__(self, tape: Any) -> Buffer:
        return self.hook.fetch(self.number, self.tensor)


class Offload:
    """One step's hook. Numbers count every tensor that is saved, also those that stay."""

    period = STASH + 1
    """Layers after which a repeated one does what the one before did."""

    def __init__(self, tape: Any, kind: str) -> None:
        self.tape, self.row = tape, OFFLOADERS[kind]
        self.active = True  # off where the output projection runs
        self.number = 0
        self.stash: dict[int, Buffer] = {}  # under way to the host
        self.back: dict[int, Buffer] = {}  # fetched, and held until the next node that fetches has run
        self.before: list[int] | None = (
            None  # of `back`: what the node that runs lets go; None: it fetches nothing
        )
        self.place: dict[int, int] = {}  # a buffer's index -> the last number that it was saved under
        self.index_of: dict[int, int] = {}

    def pack(self, tensor: Tensor, by: str) -> Any:
        """What a node keeps of a saved tensor: its buffer, None for a resident one, or a `Moved`."""
        buffer = tensor.buffer
        if not self.active:
            if buffer is not None:
                mark_saved(buffer, by)
            return buffer
        self.number += 1
        if buffer is None and (self.row.spares_weights or by != "linear"):
            return None
        if buffer is not None:
            shared = self.row.shares and buffer.index in self.place
            if shared:
                self._track(buffer.index, self.number)
            if shared or _small(self.tape, tensor):
                mark_saved(buffer, by)
                return buffer
        self._send(tensor, by)
        return Moved(self, self.number, tensor)

    def _send(self, tensor: Tensor, by: str) -> None:
        tape, sent = self.tape, tensor.buffer
        if sent is None or (by in VIEWS and len(tensor.shape) == 4):
            why = "a view, copied before it is sent to the host"
            sent = tape.alloc("contiguous copy", tensor.shape, tensor.dtype, why).buffer
        if not tape.running:  # what a recomputation in the backward sends is there for one layer at a time
            tape.host = tape.host + tape.size(tensor.shape, tensor.dtype) * tape.times
        if not self.row.streams:
            return
        assert sent is not None
        for old in [each for each in self.stash if each <= self.number - STASH]:
            self._let_go(old)
        mark_saved(sent, by)
        self.stash[self.number] = sent
        if self.row.shares and tensor.buffer is not None:
            self._track(tensor.buffer.index, self.number)

    def _track(self, index: int, number: int) -> None:
        self.place[index], self.index_of[number] = number, index

    def _let_go(self, number: int) -> None:
        del self.stash[number]
        index = self.index_of.pop(number, None)
        if index is not None and self.place.get(index) == number:
            del self.place[index]

    def fetch(self, number: int, like: Tensor) -> Buffer:
        """The bytes of what was saved under a number: those still under way, else a copy on the side
        stream.
        """
        if self.row.streams and self.before is None:
            # in a backward pass inside another, a reentrant checkpoint's, nothing that was fetched goes
            self.before = list(self.back) if self.tape.outermost else []
        if number in self.stash:
            return self.stash[number]
        if number in self.back:
            return self.back[number]
        made: Tensor = self.tape.alloc(
            "saved tensor brought back", like.shape, like.dtype, "offloaded since the forward"
        )
        assert made.buffer is not None
        mark_saved(made.buffer, "a node of the backward pass")
        if self.row.streams:
            self.tape.infos[-1].stream, self.tape.streams = "side", True
            self.back[number] = made.buffer
        return made.buffer

    @contextmanager
    def around_node(self) -> Iterator[None]:
        """A node of the backward pass runs: where it fetches, what is under way goes after it, and what the
        node before fetched.
        """
        outer, self.before = self.before, None
        yield
        before, self.before = self.before, outer
        if before is None:
            return
        for old in list(self.stash):
            self._let_go(old)
        for old in before:
            self.back.pop(old, None)

    def end(self) -> None:
        """The backward pass has ended."""
        self.back.clear()
        self.stash.clear()
        self.place.clear()

    @contextmanager
    def spared(self) -> Iterator[None]:
        """What is saved inside stays, and is not counted."""
        before, self.active = self.active, False
        try:
            yield
        finally:
            self.active = before


def _small(tape: Any, tensor: Tensor) -> bool:
    """Whether it is below the smallest size that goes; a size that grows with the batch is not."""
    terms = tape.size(tensor.shape, tensor.dtype).terms
    return all(not monomial for monomial in terms) and sum(terms.values()) < SMALLEST
