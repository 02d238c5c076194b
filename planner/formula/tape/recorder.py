"""What a tape records: births and deaths of buffers, operations with what they save, layers that repeat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from memplan.planner.formula.symbolic.expr import Expr, const, product
from memplan.planner.formula.tape.nodes import (
    Backward,
    Buffer,
    Info,
    Node,
    Shape,
    Tensor,
    mark_saved,
)
from memplan.planner.tables.components import Component
from memplan.planner.tables.dtypes import itemsize

if TYPE_CHECKING:
    from memplan.planner.formula.tape.offload import Offload


@dataclass(slots=True)
class Region:
    """A walked layer that stands for `times` layers: the nodes from `low` to below `high` are its
    backward.
    """

    low: int
    high: int
    times: int
    extra: dict[int, int]  # what the other layers left behind in the forward, by buffer
    start: int | None = None
    forward: Span | None = None
    backward: Span | None = None
    left: dict[int, int] = field(default_factory=dict)  # and in the backward pass


class Span(NamedTuple):
    """What a repeated layer did once, forwards or backwards: events [start, stop) of the log, whose event
    `stop` stands for the other layers.
    """

    start: int
    stop: int


class Recorder:
    """The log of one training step, and the switches that the rules read while they write it."""

    def __init__(self) -> None:
        self.log: list[
            tuple[int, Any]
        ] = []  # (buffer index, +1 / -1), or (-1, {index: count}) for repeated layers
        self.infos: list[Info] = []
        self.marks: list[tuple[int, str]] = []  # (position in the log, name of the moment that begins there)
        self.dropped: set[int] = set()  # events of the log that free what other layers still have
        self.grad_enabled = True
        self.fused_dropout = True  # as on CUDA
        self.training = True  # dropout drops
        self.pack: Callable[[Buffer | None, str], Any] | None = None  # saved-tensor hook
        self.offload: Offload | None = None  # the hook outside of it, which sends what is saved to the host
        self.scope = ""
        self.streams = False  # some buffers are another stream's than the one that computes
        self.sequence = 0
        self.walked: list[Region] = []  # every repeated layer of the forward
        self.regions: list[Region] = []  # those whose backward has not ended
        self.times = 1  # how many layers the one that is being walked stands for
        self.host: Expr = const(0)  # bytes that offloading puts in host memory
        self.autocast = False  # around the forward, and a checkpointed region's recomputation
        self.casts: dict[int, Tensor] | None = None  # autocast's cache of copies of leaves, where it is on
        self.taken: Callable[[Tensor], None] | None = (
            None  # what happens to a leaf whose gradient has just come
        )
        self.between: Callable[[], None] | None = (
            None  # what happens before a run of equal layers in the backward, and in each of them at its end
        )
        self._sizes: dict[tuple[Shape, str], Expr] = {}

    # ---- buffers -------------------------------------------------------------------------------------------

    def size(self, shape: Shape, dtype: str) -> Expr:
        """Bytes of a contiguous tensor."""
        key = (shape, dtype)
        known = self._sizes.get(key)
        if known is None:
            known = self._sizes[key] = product((*shape, itemsize(dtype)))
        return known

    def alloc(
        self, name: str, shape: Shape, dtype: str, why: str = "", component: Component | None = None
    ) -> Tensor:
        """A new buffer and the tensor that holds it, outside the graph."""
        self.infos.append(Info(self.scope + name, shape, dtype, self.size(shape, dtype), why, component))
        return Tensor(Buffer(self, len(self.infos) - 1), shape, dtype, None, False, name)

    def once(self, tensor: Tensor) -> Tensor:
        """Say that all layers share a tensor, whichever of them is the last to let it go."""
        assert tensor.buffer is not None
        tensor.buffer.info.once = True
        return tensor

    def resize(self, tensor: Tensor, shape: Shape, dtype: str) -> None:
        """Say late what a buffer of one tensor is: its size counts from its birth on."""
        assert tensor.buffer is not None
        info = tensor.buffer.info
        tensor.shape, tensor.dtype = info.shape, info.dtype = shape, dtype
        info.size = self.size(shape, dtype)

    def end_forward(self) -> None:
        """Whatever is still there when a forward ends outlives it. Among buffers of one kind a birth may be
        matched by another one's death, which happens in repeated layers: they count together.
        """
        own: Counter[int] = Counter()
        for index, change in self.log:
            if index < 0:
                own.update(change)
            else:
                own[index] += change
        kinds: Counter[tuple[str, Shape, str]] = Counter()
        for index, count in own.items():
            kinds[self.infos[index].kind] += count
        for index, count in own.items():
            if count and kinds[self.infos[index].kind] > 0:
                self.infos[index].outlives = True

    def mark(self, moment: str) -> None:
        """From here on events belong to this moment."""
        self.marks.append((len(self.log), moment))

    # ---- recording -----------------------------------------------------------------------------------------

    def op(
        self,
        kind: str,
        inputs: Sequence[Tensor],
        shape: Shape,
        dtype: str,
        *,
        saves: Sequence[Tensor] = (),
        saves_output: bool = False,
        backward: Backward | None = None,
        name: str = "",
        why: str = "",
        alias: Tensor | None = None,
    ) -> Tensor:
        """Run one operation: save inputs, make the output (or alias a buffer), save the output, add a node
        where a gradient is wanted.
        """
        node = None
        if self.grad_enabled and any([tensor.requires_grad for tensor in inputs]):
            self.sequence += 1
            node = Node(
                kind,
                self.sequence,
                tuple([t.edge() for t in inputs]),
                backward,
                tuple([(t.shape, t.dtype) for t in inputs]),
            )
            node.scope = self.scope
            for tensor in saves:
                self.save(node, tensor)
        out = (
            alias.detach()
            if alias is not None
            else self.alloc(name or f"{kind} output", shape, dtype, why or f"made by {kind}")
        )
        out.shape, out.dtype = shape, dtype
        if node is not None:
            out.node, out.requires_grad = node, True
            if saves_output:
                self.save(node, out)
        return out

    def node_runs(self) -> AbstractContextManager[None]:
        """Around what a node's backward does."""
        return nullcontext() if self.offload is None else self.offload.around_node()

    def save(self, node: Node, tensor: Tensor) -> None:
        """Save a tensor for a node's backward, through the checkpoint hook where one is active."""
        if self.pack is not None:
            node.saved.append(self.pack(tensor.buffer, node.name))
        elif self.offload is not None:
            node.saved.append(self.offload.pack(tensor, node.name))
        elif tensor.buffer is not None:
            mark_saved(tensor.buffer, node.name)
            node.saved.append(tensor.buffer)

    @contextmanager
    def no_grad(self) -> Iterator[None]:
        """Record what is inside without a graph (torch.no_grad)."""
        before, self.grad_enabled = self.grad_enabled, False
        try:
            yield
        finally:
            self.grad_enabled = before

    @contextmanager
    def inside(self, scope: str) -> Iterator[None]:
        """Prefix the names of buffers made inside."""
        layer, _, rest = scope.rpartition(".*.")
        nested = layer and self.scope.startswith(f"{layer}.*.")  # the layer's path is said once
        before, self.scope = self.scope, self.scope + (rest if nested else scope)
        try:
            yield
        finally:
            self.scope = before

    # ---- repetition ----------------------------------------------------------------------------------------

    @contextmanager
    def repeat(self, times: int) -> Iterator[None]:
        """What is walked inside happens `times` times in a row: its net effect is repeated here, and again in
        the backward pass.
        """
        low, start, self.times = self.sequence + 1, len(self.log), times
        yield
        self.times = 1
        if times > 1:
            stop = len(self.log)
            extra = self._jump(start, times)
            span = Span(start, stop)
            self.walked.append(Region(low, self.sequence + 1, times, extra, forward=span))
            if self.grad_enabled:
                self.regions.append(self.walked[-1])

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """What is freed inside goes for every repeated layer that still has it."""
        start = len(self.log)
        yield
        freed = {index for index, change in self.log[start:] if index >= 0 and change < 0}
        for extra in (extra for region in self.walked for extra in (region.extra, region.left)):
            gone = {index: -count for index, count in extra.items() if index in freed and count > 0}
            if gone:
                self.dropped.add(len(self.log))
                self.log.append((-1, gone))

    def new_casts(self) -> dict[int, Tensor] | None:
        """An empty cache, as a region that enters autocast by itself has it."""
        return {} if self.autocast else None

    def forget_casts(self) -> None:
        """Autocast ends: its cached copies go unless a node saved them."""
        if self.casts is not None:
            with self.dropping():
                self.casts.clear()

    def _jump(self, start: int, times: int) -> dict[int, int]:
        net: Counter[int] = Counter()
        for index, change in self.log[start:]:
            if index >= 0:
                net[index] += change
            else:
                net.update(change)
        change = {
            index: count * (times - 1) for index, count in net.items() if count and not self.infos[index].once
        }
        self.log.append((-1, change))
        return change

    def _cross(self, sequence: int, closing: bool = False) -> None:
        """Begin and end repeated regions as the backward pass moves down the sequence numbers."""
        while self.regions:
            region = self.regions[-1]
            if region.start is None and sequence < region.high and not closing:
                self._at_bounds()
                region.start = len(self.log)
            if sequence >= region.low and not closing:
                return
            if region.start is not None:
                self._at_bounds()
                region.backward = Span(region.start, len(self.log))
                region.left = self._jump(region.start, region.times)
            self.regions.pop()

    def _at_bounds(self) -> None:
        if self.between is not None:
            self.between()
