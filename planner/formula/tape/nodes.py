"""The graph that a tape grows: buffers that count their own births and deaths, tensors that look at them,
nodes that lead back.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from memplan.planner.formula.symbolic.expr import Expr, Sized
from memplan.planner.tables.components import Component

Shape = tuple[Sized, ...]
FIRST = -(10**12)  # accumulation into a leaf runs before anything else that is ready


@dataclass(slots=True)
class Info:
    """What the rows say of a buffer. `component` None: activations where autograd saved it or it outlives its
    forward, else temporaries.
    """

    name: str
    shape: Shape
    dtype: str
    size: Expr
    why: str
    component: Component | None
    saved_by: str | None = None
    outlives: bool = False  # its forward: an output that the loop holds, or what a graph's context keeps
    names_itself: bool = False  # its row says what it is, also where it says what saved it
    stream: str = ""  # that asks for it, where another one computes
    once: bool = False  # one for all layers: its death inside a repeated one is not repeated

    @property
    def kind(self) -> tuple[str, Shape, str]:
        """What buffers of repeated layers have in common."""
        return self.name, self.shape, self.dtype


class Ledger(Protocol):
    """What a buffer writes its birth and death into: the tape."""

    log: list[tuple[int, Any]]
    infos: list[Info]


class Buffer:
    """The bytes of one storage: born when made, freed when the last reference to it goes."""

    __slots__ = ("index", "tape")

    def __init__(self, tape: Ledger, index: int) -> None:
        self.tape, self.index = tape, index
        tape.log.append((index, 1))

    def __del__(self) -> None:
        try:
            self.tape.log.append((self.index, -1))
        except AttributeError:  # an interrupt came before it was born
            return

    @property
    def info(self) -> Info:
        """The buffer's size, dtype and component."""
        return self.tape.infos[self.index]


class Tensor:
    """A view of a buffer (None for what is resident anyway: parameters) with its place in the graph."""

    __slots__ = ("buffer", "dtype", "grad", "leaf", "name", "node", "requires_grad", "shape", "viewed")

    def __init__(
        self,
        buffer: Buffer | None,
        shape: Shape,
        dtype: str,
        node: Node | None = None,
        requires_grad: bool = False,
        name: str = "",
    ) -> None:
        self.buffer, self.shape, self.dtype, self.node, self.requires_grad, self.name = (
            buffer,
            shape,
            dtype,
            node,
            requires_grad,
            name,
        )
        # of a gradient: another tensor's view, which keeps that tensor, so that nothing is added to it in
        # place
        self.viewed = False
        self.grad: Tensor | None = None
        self.leaf: Callable[[], Node | None] | None = (
            None  # a weak reference: the graph owns its accumulation nodes
        )

    def view(self, *shape: Sized) -> Tensor:
        """The same bytes and the same place in the graph under another shape (a view node costs nothing)."""
        return Tensor(
            self.buffer,
            shape,
            self.dtype,
            self.node if self.node or not self.requires_grad else self.edge(),
            self.requires_grad,
            self.name,
        )

    def detach(self) -> Tensor:
        """The same bytes without a place in the graph (torch.Tensor.detach)."""
        return Tensor(self.buffer, self.shape, self.dtype, None, False, self.name)

    def edge(self) -> Node | None:
        """The node that its gradient flows to."""
        if self.node is not None or not self.requires_grad:
            return self.node
        leaf = self.leaf() if self.leaf is not None else None
        if leaf is None:
            leaf = Node("accumulate", FIRST, (), None, ())
            leaf.target = self
            self.leaf = weakref.ref(leaf)
        return leaf

    @property
    def shared(self) -> bool:
        """Whether anything but this tensor refers to its bytes."""
        return self.buffer is None or sys.getrefcount(self.buffer) > 2


Backward = Callable[
    [Any, "Node", Tensor], Sequence[Tensor | None]
]  # (the tape, the node, the incoming gradient)


class Node:
    """One operation of the graph: where its gradients go, what it saved, and how it makes its inputs'
    gradients.
    """

    __slots__ = (
        "__weakref__",
        "backward",
        "edges",
        "held",
        "kept",
        "metas",
        "name",
        "saved",
        "scope",
        "sequence",
        "target",
    )

    def __init__(
        self,
        name: str,
        sequence: int,
        edges: tuple[Node | None, ...],
        backward: Backward | None,
        metas: tuple[tuple[Shape, str], ...],
    ) -> None:
        self.name, self.sequence, self.edges, self.backward, self.metas = (
            name,
            sequence,
            edges,
            backward,
            metas,
        )
        self.saved: list[Any] = []
        self.held: list[Any] = []  # what it saved, unpacked, while its backward runs
        self.kept: list[
            Buffer
        ] = []  # held by a Python context: no saved-tensor hook sees them, and they live as long as the node
        self.target: Tensor | None = None
        self.scope = ""

    def needs(self, index: int) -> bool:
        """Whether input `index` wants a gradient."""
        return self.edges[index] is not None


def mark_saved(buffer: Buffer, by: str) -> None:
    """Note the first operation that saved a buffer."""
    info = buffer.info
    if info.saved_by is None:
        info.saved_by = by


def dependencies(root: Node) -> dict[Node, int]:
    """How many nodes of the graph below `root` lead to each."""
    counts: dict[Node, int] = {root: 0}
    stack = [root]
    while stack:
        for edge in stack.pop().edges:
            if edge is not None:
                if edge not in counts:
                    counts[edge] = 0
                    stack.append(edge)
                counts[edge] += 1
    return counts
