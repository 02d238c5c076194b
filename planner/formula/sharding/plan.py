"""ShardingPlan: what one of N processes holds, and what happens around its step. Here: one that holds
everything.

`ddp.py` has the replica that exchanges gradients, `fsdp.py` and `zero.py` the ranks that share. N ranks; rank
0 is described where ranks differ: it holds the most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.parameters import ParameterTable
from memplan.planner.formula.replay.events import Events
from memplan.planner.formula.replay.load_peak import load_candidates
from memplan.planner.formula.replay.loaded import loaded
from memplan.planner.formula.resident.loading import server_rows
from memplan.planner.formula.resident.parameter_spec import ParameterSpec
from memplan.planner.formula.rows import SymbolicRow
from memplan.planner.formula.symbolic.expr import Expr, Sized, ceil_div, product
from memplan.planner.formula.tape.tape import Tensor
from memplan.planner.tables.dtypes import itemsize

Loading = dict[str, list[list[SymbolicRow]]]
Bytes = tuple[str, int]
"""A tensor's dtype and bytes."""
Whole = tuple[str, tuple[Sized, ...], str]
"""A gathered tensor's name, shape and dtype."""


class StrategyHooks:
    """What a strategy does at the places of a step where it can act. This one does nothing."""

    accumulates = True  # gradients of earlier micro-batches are whole, and the step itself makes their rows
    frees = False  # gradients go with the optimizer's step
    outside = False  # around a checkpointed layer, not inside it
    keeps = False  # some of what a forward without a backward gathers is there in the next one

    def enter(self, unit: str, given: Tensor, place: int | None = None, key: int | None = None) -> Tensor:
        """Before a module that is sharded as one unit runs; `place` is the layer's index, `key` that of the
        walked layer.
        """
        return given

    def leave(self, unit: str, out: Tensor, place: int | None = None, key: int | None = None) -> Tensor:
        """After it ran."""
        return out

    def accumulated(self) -> None:
        """Before a micro-batch that follows others of its step: the gradients that those left."""

    def begin(self) -> None:
        """Before the forward."""

    def begin_backward(self) -> None:
        """Before the backward."""

    def end_backward(self) -> None:
        """After the backward."""

    def begin_optimizer(self) -> list[Tensor]:
        """What exists only while the optimizer steps."""
        return []


Schedule = Callable[[Any, Context], StrategyHooks]
"""What makes a strategy's hooks of its rank (of the strategy's own class) and the walk."""


class ShardingPlan:
    """One process that holds everything. `stored`: the tensors as they are kept; `seen`: as forward and
    backward compute with them.
    """

    def __init__(self, stored: ParameterTable, seen: ParameterTable | None = None) -> None:
        self.stored, self.seen = stored, seen or stored
        self.setup, self.spec, self.ranks = stored.setup, stored.spec, stored.setup.gpus
        self.base_layers = {t.name: t.layers for t in stored.base}
        self.schedule: Schedule | None = None

    def resident(self) -> list[SymbolicRow]:
        """Rows that exist all through the training step."""
        return [
            *self.stored.weight_rows(),
            *self.stored.second_rows(),
            *self.stored.state_rows(),
            *server_rows(self.setup),
        ]

    def loading(self) -> Loading:
        """Rows of `load_peak` and `load`: of each moment the states among which the largest counts."""
        return load_candidates(self.stored, self.each_layer)

    def load(self, rank: int) -> Events:
        """What building the model allocates and frees on this process, in order, with adapters of a rank: not
        to be changed.
        """
        return loaded(self.stored, rank, self.each_layer).out

    def wrap(self, out: Events, rank: int) -> list[int]:
        """Write what wrapping the loaded model allocates and frees; the ids of what `regroup` replaces."""
        return []

    def constants_of(self, tensors: Iterable[ParameterSpec], rank: int) -> Iterator[int]:
        """Bytes of what stands beside one each of quantized tensors, and goes to the device with it."""
        for tensor in tensors:
            for row in self.stored.constants(tensor):
                yield row.size.evaluate({"R": rank}) // row.count

    def until_backward(self) -> Sequence[int]:
        """The ids of what the load left and the first forward lets go."""
        return ()

    def races(self) -> bool:
        """Whether a race of threads decides when something goes that `regroup` replaces."""
        return False

    def regroup(
        self, out: Events, rank: int, wrapped: Sequence[int], gradients: Sequence[Bytes], *, late: bool
    ) -> int:
        """Write what comes before the second forward whose gradients are reduced; after how many of its
        gradients what it replaces goes (0: it went, or stays). `gradients`: in the order in which the first
        ones came; `late`: what a race decides goes as late as it can.
        """
        return 0

    def host(self) -> list[SymbolicRow]:
        """Rows in host memory."""
        return self.stored.host_rows()

    def gathered(self) -> Iterator[Sequence[Whole]]:
        """What of the parameters saving gathers, one sequence at once after the other: nothing."""
        return iter(())

    def stepped(self) -> Sequence[ParameterSpec]:
        """The tensors that the optimizer steps through, as this rank holds them."""
        return self.stored.trained

    def layers(self, tensor: ParameterSpec) -> tuple[int, ...]:
        """The decoder layers that have it: an adapter is where the weight (or the experts' parameter) that it
        sits on is.
        """
        module = tensor.name.rpartition(".")[0]
        return tensor.layers or self.base_layers.get(f"{module}.weight") or self.base_layers.get(module) or ()

    def each_layer(self, tensor: ParameterSpec) -> Sequence[int]:
        """The decoder layers that have a tensor: the first ones for what is beside no weight: bottlenecks."""
        return self.layers(tensor) or (range(tensor.count) if tensor.count > 1 else ())

    def hooks(self, walk: Context) -> StrategyHooks:
        """What this rank does around one walked step."""
        return self.schedule(self, walk) if self.schedule is not None else StrategyHooks()


def part(size: Sized, ranks: int) -> Sized:
    """ceil(size / ranks): what rank 0 holds of one dimension."""
    shared = ceil_div(size, ranks)
    return shared if shared.constant is None else shared.constant


def nbytes(elements: Sized, dtype: str) -> Expr:
    """Bytes of so many elements of a dtype."""
    return product((elements, itemsize(dtype)))
