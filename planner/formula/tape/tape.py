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
from collections.abc import Sequence

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
from memplan.planner.formula.tape.recorder import Recorder

__all__ = ["Backward", "Buffer", "Info", "Node", "Shape", "Tape", "Tensor", "mark_saved"]


NORM, GATED, ROTATED, ENTROPY = "RMSNorm kernel", "gated product", "rotary kernel", "cross-entropy kernel"
LORA = "adapters as one function"
PYTHON_FUNCTIONS = (
    *("4-bit linear", "8-bit linear", "quantized linear"),
    *(NORM, GATED, ROTATED, ENTROPY, LORA),
)
"""Nodes whose backward is a library's Python function."""


class Tape(Recorder):
    """The log of one training step, and the backward pass over what it recorded."""

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
            self._at_bounds()

    _running = 0

    @property
    def outermost(self) -> bool:
        """Whether the backward pass that is under way is inside no other."""
        return self._running == 1

    @property
    def running(self) -> bool:
        """Whether a backward pass is under way."""
        return self._running > 0

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
            if incoming is not None:
                given = [incoming]
                del incoming
                with self.node_runs():
                    results = self._apply(node, given)
                    del given
            else:
                results = [None] * len(node.edges)
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

    def _apply(self, node: Node, given: list[Tensor]) -> list[Tensor | None]:
        """The gradients of a node's inputs. `given`: the incoming one, which a Python function lets go before
        they are cast (csrc/autograd/python_function.cpp PyNode::apply).
        """
        assert node.backward is not None
        incoming = given[0]
        held = [unpack(self) if callable(unpack := saved) else saved for saved in node.saved]
        self.scope, node.held = node.scope, held
        results = list(node.backward(self, node, incoming))
        # what a checkpoint's hook brought back goes with the formula; the node's own saved tensors when it is
        # done
        held.clear()
        shape_given, viewed = incoming.shape, incoming.viewed
        own = [r is not None and r.buffer is incoming.buffer for r in results]
        if node.name in PYTHON_FUNCTIONS:
            given.clear()
            del incoming
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
            if own[position]:
                result.viewed = result.viewed or viewed or result.shape != shape_given
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
