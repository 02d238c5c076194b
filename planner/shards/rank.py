"""Rank: what one of N processes holds, and what happens around its step. Here: a replica that holds everything (one GPU, or DDP).

`fsdp.py` and `zero.py` have the ranks that share. N ranks; rank 0 is described where ranks differ: it holds the most.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.dtypes import itemsize
from planner.expr import Expr, Sized, ceil_div, product
from planner.forward.walk import Walk
from planner.parameters import Inventory
from planner.resident.loading import load_candidates
from planner.resident.stored import Stored
from planner.rows import SymbolicRow
from planner.tape.tape import Tensor

Loading = dict[str, list[list[SymbolicRow]]]


class Around:
    """What a strategy does at the places of a step where it can act. This one does nothing."""

    accumulates = True  # gradients of earlier micro-batches are whole, and the step itself makes their rows

    def enter(self, unit: str, given: Tensor, place: int | None = None, key: int | None = None) -> Tensor:
        """Before a module that is sharded as one unit runs; `place` is the layer's index, `key` that of the walked layer."""
        return given

    def leave(self, unit: str, out: Tensor, place: int | None = None, key: int | None = None) -> Tensor:
        """After it ran."""
        return out

    def begin(self) -> None:
        """Before the forward."""

    def begin_backward(self) -> None:
        """Before the backward."""

    def end_backward(self) -> None:
        """After the backward."""

    def begin_optimizer(self) -> list[Tensor]:
        """What exists only while the optimizer steps."""
        return []


class Views(Around):
    """DDP with gradient_as_bucket_view: a gradient is copied into its bucket and becomes a view of it, and its own bytes go (reducer.cpp
    `mark_variable_ready_dense`)."""

    def __init__(self, walk: Walk) -> None:
        self.names = {t.name for t in walk.inventory.trained}
        walk.t.taken = self._viewed

    def _viewed(self, leaf: Tensor) -> None:
        if leaf.name in self.names:
            leaf.grad = Tensor(None, leaf.shape, leaf.dtype)


class Rank:
    """One process that holds everything. `stored`: the tensors as they are kept; `seen`: as forward and backward compute with them."""

    def __init__(self, stored: Inventory, seen: Inventory | None = None) -> None:
        self.stored, self.seen = stored, seen or stored
        self.setup, self.spec, self.ranks = stored.setup, stored.spec, stored.setup.gpus
        self.base_layers = {t.name: t.layers for t in stored.base}

    def resident(self) -> list[SymbolicRow]:
        """Rows that exist all through the training step."""
        return [*self.stored.weight_rows(), *self.stored.state_rows(), *self._buckets()]

    def loading(self) -> Loading:
        """Rows of `load_peak` and `load`. DDP's buckets are made when the model is wrapped, before the first step."""
        buckets = self._buckets()
        return {name: [[*rows, *(buckets if rows is states[0] else ())] for rows in states]
                for name, states in load_candidates(self.stored).items()}  # fmt: skip

    def host(self) -> list[SymbolicRow]:
        """Rows in host memory."""
        return self.stored.host_rows()

    def stepped(self) -> Sequence[Stored]:
        """The tensors that the optimizer steps through, as this rank holds them."""
        return self.stored.trained

    def layers(self, tensor: Stored) -> tuple[int, ...]:
        """The decoder layers that have it: an adapter is where the weight (or the experts' parameter) that it sits on is."""
        module = tensor.name.rpartition(".")[0]
        return tensor.layers or self.base_layers.get(f"{module}.weight") or self.base_layers.get(module) or ()

    def around(self, walk: Walk) -> Around:
        if self.setup.parallel == "ddp" and self.setup.gradient_as_bucket_view:
            return Views(walk)
        return Around()

    def _buckets(self) -> list[SymbolicRow]:
        """DDP's buckets: all gradients once more, whatever bucket_cap_mb cuts them into (torch 2.13 csrc/distributed/c10d/reducer.cpp)."""
        return self.stored.bucket_rows()


def part(size: Sized, ranks: int) -> Sized:
    """ceil(size / ranks): what rank 0 holds of one dimension."""
    shared = ceil_div(size, ranks)
    return shared if shared.constant is None else shared.constant


def nbytes(elements: Sized, dtype: str) -> Expr:
    return product((elements, itemsize(dtype)))
