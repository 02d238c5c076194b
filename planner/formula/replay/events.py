"""A sequence of allocations and frees under way, with sizes in bytes."""

from __future__ import annotations

from collections.abc import Iterable

from memplan.planner.allocator.quick import EMPTY_CACHE
from memplan.planner.formula.symbolic.expr import Sized

About = tuple[str, tuple[Sized, ...], str, str]
"""A tensor's name, shape and dtype, and what of it (such as its quantization constants)."""


class Events:
    """`events`: an id at its birth, ~id at its release, EMPTY_CACHE, in order; `sizes[id]`: bytes asked
    for.
    """

    def __init__(self) -> None:
        self.steady = self.trained = 0  # where the steady step begins, and where it ends
        self.spans: list[tuple[str, int]] = []  # what ends where among the events
        self.events: list[int] = []
        self.sizes: list[int] = []
        self.streams: dict[
            int, str
        ] = {}  # of the ids that another stream than the one that computes asks for
        self.about: About = ("", (), "uint8", "")  # of what is allocated next
        self.product: int | None = None  # after how many events the first product of a load has its output

    def at(self, sizes: list[int]) -> Events:
        """The same events with other sizes."""
        other = Events()
        other.steady, other.trained, other.spans = self.steady, self.trained, self.spans
        other.events, other.sizes, other.streams = self.events, sizes, self.streams
        return other

    def alloc(self, nbytes: int) -> int:
        """Allocate bytes; the id that frees them."""
        made = len(self.sizes)
        self.sizes.append(nbytes)
        self.events.append(made)
        return made

    def free(self, *ids: int) -> None:
        """Free what these ids allocated, in this order."""
        self.events += [~each for each in ids]

    def ends(self, what: str) -> None:
        """Say that something ends here."""
        self.spans.append((what, len(self.events)))

    def through(self, nbytes: int) -> None:
        """Something that comes and goes at once."""
        self.free(self.alloc(nbytes))

    def empty_cache(self) -> None:
        """torch.cuda.empty_cache."""
        self.events.append(EMPTY_CACHE)

    def extend(self, events: Iterable[int], base: int) -> None:
        """Events whose ids count from 0, as ids from `base` on."""
        self.events += [each + base if each >= 0 else each - base for each in events]

    def reserve(self, count: int) -> int:
        """Ids for so many tensors whose sizes follow; the first of them."""
        first = len(self.sizes)
        self.sizes += [0] * count
        return first


class NamedEvents(Events):
    """Events that remember what each allocation is."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[About] = []

    def alloc(self, nbytes: int) -> int:
        """Allocate bytes, named; the id that frees them."""
        self.names.append(self.about)
        return super().alloc(nbytes)
