"""What an observed run leaves: events in order, storages, moments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ALLOC, FREE, EMPTY = "alloc", "free", "empty_cache"
OF_CALL, BY_DEPTH = "of a call", "by depth"
# the op of a tensor that loading brings to the device, by threads where the library has some
READ = "read from the checkpoint"
Event = tuple[str, int, int]  # kind, storage id, bytes


@dataclass(slots=True)
class Storage:
    """One device storage: what made it, where, when; `component` is settled later, from what ends up holding
    it.
    """

    id: int
    nbytes: int
    op: str
    module: str
    layer: int | None
    shape: tuple[int, ...]
    dtype: str
    moment: str
    born: int  # index of its allocation among the events
    # how its layer is known: "code" of that layer, an autograd "node" made outside, or the "tensors" it was
    # made from
    via: str = "code"
    component: str = ""
    name: str = ""
    saved: bool = False
    held: bool = False  # by a thread's handle, until it exits: a cuBLAS workspace
    # bytes that a closed library's documented algorithms may take beside while one makes this storage
    reach: int = 0
    died: int | None = None  # index of its release among the events
    stream: str = ""  # that asks for it, where another one computes
    # where kernels' calls are kept (trace/calls.py): the call that a storage of no bytes stands for, BY_DEPTH
    # where another depth makes another call, and OF_CALL for a workspace of the call around it
    call: Any = None

    def again(
        self,
        number: int,
        born: int,
        nbytes: int,
        shape: tuple[int, ...],
        layer: int | None,
        call: Any = None,
    ) -> Storage:
        """This storage as another log has it, where it is number `number`, born at its event `born` and not
        yet dead; what a library may take beside it grows with it. (`dataclasses.replace` takes six times as
        long, and a log has a million.)
        """
        return Storage(
            number,
            nbytes,
            self.op,
            self.module,
            layer,
            shape,
            self.dtype,
            self.moment,
            born,
            self.via,
            self.component,
            self.name,
            self.saved,
            self.held,
            -(-self.reach * nbytes // self.nbytes) if self.reach else 0,
            None,
            self.stream,
            call,
        )


@dataclass(slots=True)
class Mark:
    """One moment of one step: events[begin:end]."""

    step: int
    moment: str
    begin: int
    end: int = -1


@dataclass
class Log:
    """What an observed run leaves: the events in order, the storages by id, the context of each event, and
    the moments.
    """

    events: list[Event] = field(default_factory=list)
    storages: list[Storage] = field(default_factory=list)
    layers: list[int | None] = field(
        default_factory=list
    )  # the decoder layer in whose code each event happened
    marks: list[Mark] = field(default_factory=list)
    ops: dict[str, int] = field(default_factory=dict)  # how often each op ran

    @property
    def streams(self) -> dict[int, str]:
        """The storages that another stream than the computing one asked for."""
        return {storage.id: storage.stream for storage in self.storages if storage.stream}
