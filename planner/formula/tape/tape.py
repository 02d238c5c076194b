"""A symbolic autograd tape: tensors whose sizes are expressions, with PyTorch's rules for what lives how
long.

The walk of a model (layers.py) is ordinary Python code over `Tensor`s, in the order and with the local
variables of the library that it describes. A tensor's bytes live as long as something refers to its `Buffer`:
a local variable, a saved tensor, a gradient under way. Every birth and death goes into a log; peaks.py reads
the largest states out of it. Equal layers are walked once and their effect repeated.

Lifetimes follow torch 2.13: csrc/autograd/engine.cpp (order by sequence number, inputs freed after a node,
then its saved tensors), input_buffer.cpp (accumulation in place where nobody else holds the gradient),
accumulate_grad.h (gradients are stolen, not copied).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from memplan.planner.formula.symbolic.expr import Expr, const, product
from memplan.planner.formula.tape.nodes import (
    FIRST,
    Backward,
    Buffer,
    Info,
    Node,
    Shape,
    Tensor,
    dependencies,
    mark_saved,
)
from memplan.planner.tables.components import Component
from memplan.planner.tables.dtypes import itemsize

__all__ = ["Backward", "Buffer", "Info", "Node", "Shape", "Tape", "Tensor", "mark_saved"]


@dataclass(slots=True)
class Region:
    """A walked layer that stands for `times` layers: the nodes from `low` to below `high` are its backward."""

    low: int
    high: int
    times: int
    extra: dict[int, int]  # what the other layers left behind in the forward, by buffer
    start: int | None = None


class Tape:
    """The log of one training step, and the switches that the rules read while they write it."""

    def __init__(self) -> None:
        self.log: list[
            tuple[int, Any]
        ] = []  # (buffer index, +1 / -1), or (-1, {index: count}) for repeated layers
        self.infos: list[Info] = []
        self.marks: list[tuple[int, str]] = []  # (position in the log, name of the moment that begins there)
        self.grad_enabled = True
        self.fused_dropout = True  # as on CUDA
        self.training = True  # dropout drops
        self.pack: Callable[[Buffer | None, str], Any] | None = None  # saved-tensor hook
        self.scope = ""
        self.sequence = 0
        self.walked: list[Region] = []  # every repeated layer of the forward
        self.regions: list[Region] = []  # those whose backward has not ended
        self.times = 1  # how many layers the one that is being walked stands for
        self.host: Expr = const(0)  # bytes that offloading puts in host memory
        self.casts: dict[int, Tensor] | None = None  # autocast's cache of weight copies
        self.taken: Callable[[Tensor], None] | None = (
            None  # what happens to a leaf whose gradient has just come
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

    def mark(self, moment: str) -> None:
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
                tuple(t.edge() for t in inputs),
                backward,
                tuple((t.shape, t.dtype) for t in inputs),
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

    def save(self, node: Node, tensor: Tensor) -> None:
        """Save a tensor for a node's backward, through the checkpoint hook where one is active."""
        if self.pack is not None:
            node.saved.append(self.pack(tensor.buffer, node.name))
        elif tensor.buffer is not None:
            mark_saved(tensor.buffer, node.name)
            node.saved.append(tensor.buffer)

    @contextmanager
    def no_grad(self) -> Iterator[None]:
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
            self.walked.append(Region(low, self.sequence + 1, times, self._jump(start, times)))
            self.regions.append(self.walked[-1])

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """What is freed inside goes for every repeated layer that still has it."""
        start = len(self.log)
        yield
        freed = {index for index, change in self.log[start:] if index >= 0 and change < 0}
        for region in self.walked:
            gone = {index: -count for index, count in region.extra.items() if index in freed}
            if gone:
                self.log.append((-1, gone))

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
                region.start = len(self.log)
            if sequence >= region.low and not closing:
                return
            if region.start is not None:
                self._jump(region.start, region.times)
            self.regions.pop()

    # ---- backward ------------------------------------------------------------------------------------------

    def backward(self, root: Tensor, grad: Tensor, besides: Sequence[tuple[Tensor, Tensor]] = ()) -> None:
        """Run the graph below `root` as torch's engine does. Only the outermost call crosses repeated
        regions.

        `besides`: tensors inside that graph whose gradients start from more than nothing.
        """
        outermost = all(region.start is None for region in self.regions) and not self._running
        self._running += 1
        with self.no_grad():
            self._run(root, grad, outermost, besides)
        self._running -= 1
        if outermost:
            self._cross(0, closing=True)

    _running = 0

    def _run(
        self, root: Tensor, grad: Tensor, outermost: bool, besides: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        first = root.edge()
        if first is None:
            return
        waiting = dependencies(first)
        pending: dict[Node, Tensor] = {first: grad}
        for tensor, start in besides:
            if tensor.node in waiting:
                pending[tensor.node] = Tensor(start.buffer, start.shape, start.dtype)
        ready: list[tuple[int, int, Node]] = [(-first.sequence, 0, first)]
        del grad
        ticket = 0
        while ready:
            _, _, node = heapq.heappop(ready)
            if outermost and node.sequence != FIRST:
                self._cross(node.sequence)
            incoming = pending.pop(node, None)
            if node.target is not None:
                if incoming is not None:
                    self._into_leaf(node.target, incoming)
                del incoming
                continue
            results = self._apply(node, incoming) if incoming is not None else [None] * len(node.edges)
            incoming = None
            node.saved.clear()
            for position, edge in enumerate(node.edges):
                if edge is None:
                    continue
                result = results[position]
                results[position] = None
                if result is not None:
                    self._accumulate(pending, edge, result)
                del result
                waiting[edge] -= 1
                if not waiting[edge]:
                    ticket += 1
                    heapq.heappush(ready, (-edge.sequence if edge.sequence != FIRST else FIRST, ticket, edge))

    def _apply(self, node: Node, incoming: Tensor) -> list[Tensor | None]:
        assert node.backward is not None
        held = [unpack(self) if callable(unpack := saved) else saved for saved in node.saved]
        self.scope = node.scope
        results = list(node.backward(self, node, incoming))
        # what a checkpoint's hook brought back goes with the formula; the node's own saved tensors when it is
        # done
        held.clear()
        for position, result in enumerate(results):
            if result is None or node.edges[position] is None:
                results[position] = None
                continue
            shape, dtype = node.metas[position]
            if result.shape != shape and self.size(result.shape, "int8") != self.size(shape, "int8"):
                result = self.alloc(
                    f"gradient of {node.name}'s input",
                    shape,
                    result.dtype,
                    "summed over the broadcast dimensions",
                )
            if result.dtype != dtype:
                result = self.alloc(
                    f"gradient of {node.name}'s input", shape, dtype, "cast to the input's dtype"
                )
            if result.buffer is incoming.buffer:
                result.viewed = incoming.viewed or result.shape != incoming.shape
            results[position] = result
            del result
        return results

    def _accumulate(self, pending: dict[Node, Tensor], edge: Node, grad: Tensor) -> None:
        old = pending.get(edge)
        if old is None:
            pending[edge] = kept = Tensor(grad.buffer, grad.shape, grad.dtype)
            kept.viewed = grad.viewed
        elif old.shared or old.viewed:
            pending[edge] = self.alloc(
                "gradient sum", old.shape, old.dtype, "two gradients of one tensor added"
            )

    def _into_leaf(self, leaf: Tensor, grad: Tensor) -> None:
        """Into a leaf: the first gradient is taken over, or copied where someone else holds it; later ones
        are added in place.
        """
        if leaf.grad is None:
            self._take(leaf, grad)
        if self.taken is not None:
            self.taken(leaf)

    def _take(self, leaf: Tensor, grad: Tensor) -> None:
        if grad.shared:
            grad = self.alloc(leaf.name + " gradient", leaf.shape, leaf.dtype, "")
        info = grad.buffer.info  # type: ignore[union-attr]
        info.name, info.shape = leaf.name + " gradient", leaf.shape
        if leaf.buffer is None:
            info.component, info.why = "gradients", "the gradient of a trained tensor, in its dtype"
        else:
            info.component, info.why = (
                "temporaries",
                "the gradient of an activation that is a leaf of its graph",
            )
        leaf.grad = grad
