"""The load of a setup, written out once for all setups that it is the same for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from memplan.planner.formula.parameters import ParameterTable
from memplan.planner.formula.replay.events import NamedEvents
from memplan.planner.formula.replay.load import Load
from memplan.planner.formula.symbolic.expr import AtomValues
from memplan.planner.tables.optimizers import OPTIMIZERS

NOT_READ = ("gpu", "attention", "checkpointing", "loss", "outputs_fp32")
"""Setup fields that no load depends on: setups that differ in these alone have one."""
OF_STATES = ("optimizer", "optimizer_mode", "rank")
"""What only optimizer states that are there at once depend on: a rank that a setup fixes decides which of
them have a floor; that of the adapters is the load's own.
"""


class _Source:
    """What a load is made of, equal where the load is: a spec by identity, the setup's other fields, the
    adapters' rank. The optimizer counts where its states are there at once; ranks that share a model cut
    their tables, which are taken by identity.
    """

    __slots__ = ("key", "layers_of", "rank", "table")

    def __init__(self, table: ParameterTable, rank: int, layers_of: Any) -> None:
        self.table, self.rank, self.layers_of = table, rank, layers_of
        setup = table.setup
        left_out = {*NOT_READ} if OPTIMIZERS[setup.optimizer].at_once else {*NOT_READ, *OF_STATES}
        if setup.vocabulary is not None:
            left_out.discard("gpu")  # its multiprocessors split the sums of a mean
        said = tuple(repr(value) for name, value in setup.values().items() if name not in left_out)
        self.key = (id(table.spec), said, rank, id(table) if setup.parallel != "none" else 0)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Source) and self.key == other.key


@dataclass(frozen=True, slots=True)
class Loaded:
    """A load: its events, where among them adapters begin, and the id of each tensor that stays, by the
    identity of its kind and its layer (-1 outside the layers). Written once, not to be changed.
    """

    out: NamedEvents
    adapted: int
    held: dict[tuple[int, int], int]


def loaded(parameter_table: ParameterTable, rank: int, layers_of: Any) -> Loaded:
    """A table's load at a rank."""
    return _loaded(_Source(parameter_table, rank, layers_of))


@lru_cache(maxsize=32)
def _loaded(source: _Source) -> Loaded:
    """The same for all whose load is the same: a suggestion and an older GPU's kernels seldom change it. The
    source that is kept keeps its spec, so that no other has its identity.
    """
    out = NamedEvents()
    load = Load(source.table, AtomValues({"R": source.rank}), out, source.layers_of)
    load.run()
    return Loaded(out, load.adapted, load.held)
