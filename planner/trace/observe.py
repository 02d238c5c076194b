"""Watches every device storage being created and freed while the real libraries run on meta tensors.

A storage's first sight among an op's outputs is its allocation; a weak reference's finalizer is its release:
the order of events is the allocator's own. What kernels allocate beyond outputs is in `kernels`, handed in.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from memplan.planner.trace.device.accumulate import calibrated, into_first
from memplan.planner.trace.elsewhere import Elsewhere
from memplan.planner.trace.events.log import ALLOC, EMPTY, FREE, READ, Log, Mark, Storage
from memplan.planner.trace.op_tensors import (
    KernelFacts,
    WorkspaceLike,
    element,
    makes_storage,
    tensor_arguments,
    tensors_of,
)

_ATEN = torch.ops.aten
# a Python list of indices reaches the device through no op (torch/csrc/autograd/python_variable_indexing.cpp)
_INDEX = _ATEN.index.Tensor


class _Watch(weakref.ref):  # type: ignore[type-arg]
    __slots__ = ("key", "id")

    key: int  # the storage's address
    id: int  # its number in the log


class Observer(Elsewhere, TorchDispatchMode):
    """Records a Log. Use as a context manager around build and step; `announce` is what `step.run` calls for
    each moment.
    """

    def __init__(
        self, kernels: KernelFacts | None = None, answers: dict[Any, Callable[..., Any]] | None = None
    ) -> None:
        super().__init__()
        calibrated()
        self.log = Log()
        self.kernels = kernels
        self.answers = answers or {}
        self.moment = "load"
        # called when a moment ends: who holds what now
        self.finalize: Callable[[str], None] = lambda moment: None
        # the most that was held in host memory at once: paged optimizer states, offloaded activations
        self.host_bytes = self._on_host_now = 0
        self.modules: list[tuple[str, int | None]] = []  # the stack of modules whose forward is running
        self._alive: dict[int, _Watch] = {}
        self._elsewhere: dict[int, _Watch] = {}  # outputs that a kernel makes on the host: seeds
        self._host = self._reading = False
        # outside the layers: the layer whose tensors the last op there worked on
        self.inherited: int | None = None
        self._via = "code"
        self._stream = ""  # that asks for what is made, where another one computes
        self._layer: int | None = None  # the layer whose code runs; None outside the layers
        # autograd sequence number -> `_where` of what made the node
        self._nodes: dict[int, tuple[str, int | None, int | None]] = {}

    # -- what build and step call ----------------------------------------------------------------------------

    @contextmanager
    def announce(self, moment: str, step: int = -1) -> Iterator[None]:
        """Everything inside belongs to `moment` of training step `step`."""
        outer, self.moment = self.moment, moment
        mark = Mark(step, moment, len(self.log.events))
        self.log.marks.append(mark)
        self._layer = self.inherited = None
        try:
            yield
        finally:
            self._layer = self.inherited = None
            mark.end = len(self.log.events)
            self.moment = outer
            self.finalize(moment)

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
        """Tensors made inside from nothing live on the host (peft creates adapters there); those made from
        device tensors do not.
        """
        outer, self._host = self._host, True
        try:
            yield
        finally:
            self._host = outer

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Tensors made inside come from the checkpoint."""
        self._reading = True
        try:
            yield
        finally:
            self._reading = False

    def number_of(self, tensor: torch.Tensor) -> int:
        """A number that no other storage has or had; its address where it is not on the device."""
        made = self.storage_of(tensor)
        return -tensor.untyped_storage()._cdata if made is None else made.id

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor made on the host, copied to the device; one that is there already, itself."""
        if not tensor.is_meta or self.knows(tensor):
            return tensor
        outer, self._host = self._host, False
        try:
            made = torch.empty_like(tensor)
        finally:
            self._host = outer
        return (
            torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
            if isinstance(tensor, torch.nn.Parameter)
            else made
        )

    def empty_cache(self) -> None:
        """The caching allocator gives back every segment that holds nothing."""
        self.log.events.append((EMPTY, -1, 0))
        self.log.layers.append(None)

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor's storage is on the modeled device (and not one made on the host or before
        observation).
        """
        return tensor.untyped_storage()._cdata in self._alive

    def storage_of(self, tensor: torch.Tensor) -> Storage | None:
        """The storage that holds a tensor; None where it is not on the device."""
        watch = self._alive.get(tensor.untyped_storage()._cdata)
        return None if watch is None else self.log.storages[watch.id]

    def follow(self, tensor: torch.Tensor) -> None:
        """What is made from no tensor next belongs to the layer of this one."""
        self.inherited = getattr(self.storage_of(tensor), "layer", None)

    def register(self, tensor: torch.Tensor | None) -> None:
        """A device tensor that no op has shown counts as made now."""
        if tensor is None or not tensor.is_meta or tensor.untyped_storage()._cdata in self._elsewhere:
            return
        if not self._host and not self.knows(tensor):
            where, layer, known = self._where()
            outer, self._via = self._via, "code" if layer is not None else "node"
            self._born(
                tensor.untyped_storage(), tensor, str(_INDEX), where, known if layer is None else layer
            )
            self._via = outer

    def freeze(self) -> None:
        """Nothing that dies from here on is an event: what is alive stays so."""
        self._alive.clear()

    def alive(self) -> Iterator[Storage]:
        """Every storage of a tensor that exists now."""
        storages = self.log.storages
        return (storages[watch.id] for watch in self._alive.values())

    def add(self, name: str, nbytes: int, where: str, layer: int | None, persistent: bool) -> int:
        """An allocation that no tensor shows (a workspace, a kernel's temporary); returns its id. What
        persists belongs to no layer.
        """
        home = None if persistent else layer
        shape = (nbytes,)
        sid = self._record(nbytes, name, where, home, shape, "uint8", layer, "temporaries", name)
        self.log.storages[sid].held = persistent
        return sid

    def _record(
        self,
        nbytes: int,
        op: str,
        where: str,
        home: int | None,
        shape: tuple[int, ...],
        dtype: str,
        layer: int | None,
        component: str = "",
        name: str = "",
    ) -> int:
        """A storage and its allocation in the log; its id. `home`: the layer it belongs to, `layer`: where it
        is made.
        """
        log, sid = self.log, len(self.log.storages)
        born = len(log.events)
        log.storages.append(
            Storage(sid, nbytes, op, where, home, shape, dtype, self.moment, born, self._via, component, name)
        )
        log.storages[sid].stream = self._stream
        log.events.append((ALLOC, sid, nbytes))
        log.layers.append(layer)
        return sid

    def drop(self, sid: int) -> None:
        """The release of what `add` or a tensor allocated."""
        log, storage = self.log, self.log.storages[sid]
        storage.died = len(log.events)
        log.events.append((FREE, sid, storage.nbytes))
        log.layers.append(self._layer if self._layer is not None else storage.layer)

    # -- what torch calls ------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = self._run(func, args, kwargs or {})
        outputs = tensors_of(out)
        fresh = bool(outputs) and makes_storage(func)
        workspaces = () if self.kernels is None or self._on_host(args) else self.kernels(func, args, outputs)
        if fresh or workspaces or self._may_hide(func, args):
            self._count(func, args, outputs, fresh, workspaces)
        else:
            self._remember_node(None)  # a view's
        return out

    def _may_hide(self, func: Any, args: tuple[Any, ...]) -> bool:
        return False  # whether to count a call that makes nothing at this size

    def _count(
        self, func: Any, args: tuple[Any, ...], outputs: Any, fresh: bool, workspaces: Sequence[Any]
    ) -> None:
        where, layers = self._place(args, len(outputs))
        home = layers[0] if layers else self._layer
        self._remember_node((where, self._layer, home))
        if func is _INDEX:
            for index in args[1]:
                self.register(index)
        temporary = [self._workspace(w, where, home) for w in workspaces if w.before]
        if fresh:
            self._outputs(func, args, outputs, where, layers)
        temporary += [self._workspace(w, where, home) for w in workspaces if not w.before]
        for sid, workspace in sorted(reversed(temporary), key=lambda made: made[1].last):
            if not workspace.persistent:
                self.drop(sid)

    def _on_host(self, args: tuple[Any, ...]) -> bool:
        """Whether an op runs on the host: none of its tensors is on the device."""
        return self._host and not any(self.knows(t) for t in tensor_arguments(args) if t.is_meta)

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the op returns: the answer that stands in for it, else the op itself, in place where CUDA
        is.
        """
        answer = self.answers.get(func)
        out = NotImplemented if answer is None else answer(func, args, kwargs)
        if out is not NotImplemented:
            return out
        return args[0] if into_first(func, args) else func(*args, **kwargs)

    def _remember_node(self, place: tuple[str, int | None, int | None] | None) -> None:
        """The autograd node that this op's forward just made: its backward belongs to the same module and
        layer. None: the module that runs, and no layer of its own.
        """
        if self.modules:
            latest = torch._C._autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
            self._nodes.setdefault(latest, place or (*self.modules[-1], None))

    def _place(self, args: tuple[Any, ...], outputs: int) -> tuple[str, list[int | None] | None]:
        """(module, the layer of each output; None: that whose code runs). Sets `_layer` and `_via`."""
        where, self._layer, known = self._where()
        if self._layer is not None:
            self._via = "code"
            return where, None
        self._via = "tensors" if known is None else "node"
        return where, self._layers_of(args, outputs) if known is None else [known] * max(outputs, 1)

    def _workspace(self, made: WorkspaceLike, where: str, layer: int | None) -> tuple[int, WorkspaceLike]:
        return self.add(made.name, made.nbytes, where, layer, made.persistent), made

    def _outputs(
        self,
        func: Any,
        args: tuple[Any, ...],
        outputs: Sequence[torch.Tensor],
        where: str,
        layers: list[int | None] | None,
    ) -> None:
        made = range(len(outputs)) if self.kernels is None else self.kernels.order(func, args, outputs)
        reach = 0 if self.kernels is None else self.kernels.reach(func, args, outputs)
        for index in set(range(len(outputs))).difference(made):
            self._not_here(outputs[index].untyped_storage())
        for index in made:
            tensor = outputs[index]
            storage = tensor.untyped_storage()
            if not tensor.is_meta or storage._cdata in self._alive or self._on_host(args):
                continue
            self._born(storage, tensor, str(func), where, layers[index] if layers else self._layer)
            if reach and (watch := self._alive.get(storage._cdata)) is not None:
                self.log.storages[watch.id].reach = reach

    def _not_here(self, storage: Any) -> None:
        key = storage._cdata
        watch = self._elsewhere[key] = _Watch(storage, lambda dead: self._elsewhere.pop(key, None))
        watch.key = key

    def _born(self, storage: Any, tensor: torch.Tensor, op: str, where: str, layer: int | None) -> None:
        if not (nbytes := storage.nbytes()):
            return
        op = READ if self._reading else op
        shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        watch = _Watch(storage, self._died)
        watch.key, watch.id = storage._cdata, self._record(nbytes, op, where, layer, shape, dtype, layer)
        self._alive[watch.key] = watch

    def _died(self, watch: _Watch) -> None:
        if self._alive.pop(watch.key, None) is not None:
            self.drop(watch.id)

    def _where(self) -> tuple[str, int | None, int | None]:
        """(module, layer whose code runs, layer whose tensors it works on): from the module stack, or from
        the autograd node whose backward runs; None where not known.
        """
        if self.modules:
            return (*self.modules[-1], None)
        node = torch._C._current_autograd_node()
        return ("", None, None) if node is None else self._nodes.get(node._sequence_nr(), ("", None, None))

    def _layers_of(self, args: tuple[Any, ...], count: int) -> list[int | None]:
        """Outside the layers, an output belongs to the layer of what it was made from: of the list element at
        its place, else of the first tensor that has one; made from none, to that of the op before.
        """
        found = [self._layer_of_output(args, index) for index in range(max(count, 1))]
        self.inherited = found[0]
        return found

    def _layer_of_output(self, args: tuple[Any, ...], index: int) -> int | None:
        made_from = [element(arg, index) for arg in args if isinstance(arg, (torch.Tensor, list, tuple))]
        tensors = (t for t in made_from if isinstance(t, torch.Tensor) and t.is_meta)
        storages = [s for s in map(self.storage_of, tensors) if s is not None]
        known = (s.layer for s in storages if s.layer is not None)
        return next(known, None) if storages else self.inherited
