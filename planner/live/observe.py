"""Watches every device storage being created and freed while the real libraries run on meta tensors.

A storage's first sight among an op's outputs is its allocation; the finaliser of a weak reference is its release, so the order of events is the
allocator's own. What a kernel allocates beyond its outputs comes from the `hidden` table that the caller hands in.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ALLOC, FREE, EMPTY = "alloc", "free", "empty_cache"
Event = tuple[str, int, int]  # kind, storage id, bytes


class Unseen(Protocol):
    """An allocation that no tensor shows."""

    name: str
    nbytes: int
    persistent: bool  # never freed: a cuBLAS workspace
    before: bool  # made before the op's outputs


class Hidden(Protocol):
    """What kernels allocate unseen, and which outputs they make on the host (planner/live/kernels.py)."""

    def __call__(self, op: Any, args: tuple[Any, ...], outputs: Sequence[torch.Tensor]) -> Sequence[Any]: ...
    def on_host(self, op: Any) -> tuple[int, ...]: ...


_ATEN = torch.ops.aten
_FROM_HOST = {_ATEN.lift_fresh.default}  # torch.tensor(data) reaches the device through this alias op


@dataclass(slots=True)
class Storage:
    """One device storage: what made it, where, when; `component` is settled later, from what ends up holding it."""

    id: int
    nbytes: int
    op: str
    module: str
    layer: int | None
    shape: tuple[int, ...]
    dtype: str
    moment: str
    born: int  # index of its allocation among the events
    component: str = ""
    name: str = ""
    saved: bool = False
    died: int | None = None  # index of its release among the events


@dataclass(slots=True)
class Mark:
    """One moment of one step: events[begin:end]."""

    step: int
    moment: str
    begin: int
    end: int = -1


class _Watch(weakref.ref):  # type: ignore[type-arg]
    __slots__ = ("key", "id")


@dataclass
class Log:
    """What an observed run leaves: the events in order, the storages by id, the context of each event, and the moments."""

    events: list[Event] = field(default_factory=list)
    storages: list[Storage] = field(default_factory=list)
    layers: list[int | None] = field(default_factory=list)  # the decoder layer in whose code each event happened
    marks: list[Mark] = field(default_factory=list)
    ops: dict[str, int] = field(default_factory=dict)  # how often each op ran


class Observer(TorchDispatchMode):
    """Records a Log. Use as a context manager around build and step; `announce` is what `step.run` calls for each moment."""

    def __init__(self, hidden: Hidden | None = None, answers: dict[Any, Callable[..., Any]] | None = None) -> None:
        super().__init__()
        self.log = Log()
        self.hidden = hidden
        self.answers = answers or {}
        self.moment = "load"
        self.settle: Callable[[str], None] = lambda moment: None  # called when a moment ends: who holds what now
        self.host_bytes = 0  # held in host memory for the step: paged optimizer states, offloaded activations
        self.modules: list[tuple[str, int | None]] = []  # the stack of modules whose forward is running
        self._alive: dict[int, _Watch] = {}
        self._host = False
        self._layer: int | None = None
        self._nodes: dict[int, tuple[str, int | None]] = {}  # autograd sequence number -> the module that made the node

    # -- what build and step call ------------------------------------------------------------------------------------------------------

    @contextmanager
    def announce(self, moment: str, step: int = -1) -> Iterator[None]:
        """Everything inside belongs to `moment` of training step `step`."""
        outer, self.moment = self.moment, moment
        mark = Mark(step, moment, len(self.log.events))
        self.log.marks.append(mark)
        try:
            yield
        finally:
            mark.end = len(self.log.events)
            self.moment = outer
            self.settle(moment)

    @contextmanager
    def scope(self, module: str, layer: int | None) -> Iterator[None]:
        """Ops inside are charged to `module`: for code that is no module's forward, such as loading."""
        self.modules.append((module, layer))
        try:
            yield
        finally:
            self.modules.pop()

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """Tensors made inside from nothing live on the host (peft creates adapters there); those made from device tensors do not."""
        outer, self._host = self._host, True
        try:
            yield
        finally:
            self._host = outer

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor made on the host, copied to the device; one that is there already, itself."""
        if not tensor.is_meta or self.knows(tensor):
            return tensor
        outer, self._host = self._host, False
        try:
            made = torch.empty_like(tensor)
        finally:
            self._host = outer
        return torch.nn.Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else made

    def empty_cache(self) -> None:
        """The caching allocator gives back every segment that holds nothing."""
        self.log.events.append((EMPTY, -1, 0))
        self.log.layers.append(None)

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor's storage is on the modelled device (and not one made on the host or before observation)."""
        return tensor.untyped_storage()._cdata in self._alive

    def storage_of(self, tensor: torch.Tensor) -> Storage | None:
        watch = self._alive.get(tensor.untyped_storage()._cdata)
        return None if watch is None else self.log.storages[watch.id]

    def freeze(self) -> None:
        """Nothing that dies from here on is an event: what is alive stays so."""
        self._alive.clear()

    def alive(self) -> Iterator[Storage]:
        """Every storage of a tensor that exists now."""
        storages = self.log.storages
        return (storages[watch.id] for watch in self._alive.values())

    def add(self, name: str, nbytes: int, layer: int | None = None) -> int:
        """An allocation that no tensor shows (a workspace, a kernel's temporary); returns its id."""
        log = self.log
        sid = len(log.storages)
        log.storages.append(Storage(sid, nbytes, name, self._where()[0], layer, (nbytes,), "uint8", self.moment, len(log.events), "temporaries", name))
        log.events.append((ALLOC, sid, nbytes))
        log.layers.append(layer)
        return sid

    def drop(self, sid: int) -> None:
        """The release of what `add` or a tensor allocated."""
        log = self.log
        storage = log.storages[sid]
        storage.died = len(log.events)
        log.events.append((FREE, sid, storage.nbytes))
        log.layers.append(self._layer if self._layer is not None else storage.layer)

    # -- what torch calls --------------------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        answer = self.answers.get(func)
        out = NotImplemented if answer is None else answer(func, args, kwargs or {})
        if out is NotImplemented:
            out = func(*args, **kwargs) if kwargs else func(*args)
        outputs = _tensors(out)
        fresh = bool(outputs) and _makes(func)
        unseen = () if self.hidden is None or self._host else self.hidden(func, args, outputs)
        if not fresh and not unseen:
            return out
        where, layer = self._where()
        self._layer = layer
        temporary = [self._unseen(u, layer) for u in unseen if u.before]
        if fresh:
            self._outputs(func, args, outputs, where, layer)
        temporary += [self._unseen(u, layer) for u in unseen if not u.before]
        for sid, persistent in temporary:
            if not persistent:
                self.drop(sid)
        return out

    def _unseen(self, hidden: Unseen, layer: int | None) -> tuple[int, bool]:
        return self.add(hidden.name, hidden.nbytes, None if hidden.persistent else layer), hidden.persistent

    def _outputs(self, func: Any, args: tuple[Any, ...], outputs: Sequence[torch.Tensor], where: str, layer: int | None) -> None:
        skipped = () if self.hidden is None else self.hidden.on_host(func)
        for index, tensor in enumerate(outputs):
            if not tensor.is_meta or index in skipped:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in self._alive:
                continue
            if self._host and not any(self.knows(t) for t in _arguments(args) if t.is_meta):
                continue
            self._born(storage, tensor, str(func), where, layer if layer is not None else self._layer_of(args, index))

    def _born(self, storage: Any, tensor: torch.Tensor, op: str, where: str, layer: int | None) -> None:
        nbytes = storage.nbytes()
        if nbytes == 0:
            return
        log = self.log
        key = storage._cdata
        sid = len(log.storages)
        watch = _Watch(storage, self._died)
        watch.key, watch.id = key, sid
        self._alive[key] = watch
        log.storages.append(Storage(sid, nbytes, op, where, layer, tuple(tensor.shape), str(tensor.dtype)[6:], self.moment, len(log.events)))
        log.events.append((ALLOC, sid, nbytes))
        log.layers.append(layer)

    def _died(self, watch: _Watch) -> None:
        if self._alive.pop(watch.key, None) is not None:
            self.drop(watch.id)

    def _where(self) -> tuple[str, int | None]:
        """The module whose code is running: from the module stack, or from the autograd node whose backward runs."""
        if self.modules:
            here = self.modules[-1]
            self._nodes.setdefault(torch._C._autograd._get_sequence_nr() - 1, here)  # type: ignore[attr-defined]
            return here
        node = torch._C._current_autograd_node()
        return ("", None) if node is None else self._nodes.get(node._sequence_nr(), ("", None))

    def _layer_of(self, args: tuple[Any, ...], index: int) -> int | None:
        """The layer of the tensor that output `index` was made from: the index-th of a list argument, else the first tensor."""
        for arg in args:
            if isinstance(arg, (list, tuple)) and index < len(arg):
                arg = arg[index]
            if isinstance(arg, torch.Tensor):
                storage = self.storage_of(arg)
                return None if storage is None else storage.layer
        return None


_MAKES: dict[Any, bool] = {}


def _makes(func: Any) -> bool:
    """Whether the op can return storages of its own: false for views, in-place and out= variants, by its schema."""
    known = _MAKES.get(func)
    if known is None:
        returns = func._schema.returns
        known = func in _FROM_HOST or not returns or any(r.alias_info is None for r in returns)
        _MAKES[func] = known
    return known


def _tensors(out: Any) -> Sequence[torch.Tensor]:
    if isinstance(out, torch.Tensor):
        return (out,)
    if isinstance(out, (list, tuple)):
        return [t for o in out for t in _tensors(o)]
    return ()


def _arguments(args: Sequence[Any]) -> Iterator[torch.Tensor]:
    for arg in args:
        if isinstance(arg, torch.Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from _arguments(arg)
