"""The largest states while a model is built: the load's own events, followed to where most is allocated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

from memplan.planner.formula.forward.context import device_of
from memplan.planner.formula.parameters import ParameterTable
from memplan.planner.formula.replay.events import About, Events, NamedEvents
from memplan.planner.formula.replay.load import MOST_LAYERS
from memplan.planner.formula.replay.loaded import loaded
from memplan.planner.formula.resident.loading import load_rows
from memplan.planner.formula.resident.parameter_spec import packed_bytes
from memplan.planner.formula.rows import SymbolicRow
from memplan.planner.formula.symbolic.expr import Expr, as_expr, product
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.components import Component
from memplan.planner.tables.cublas import HELD, THREADS, workspace_name

USUAL_RANK = 16
"""The adapters' rank at which the largest states are looked for: the states are those of every rank, since
adapters are a small part of each.
"""


def load_candidates(parameter_table: ParameterTable, layers_of: Any) -> dict[str, list[list[SymbolicRow]]]:
    """Rows of `load_peak` and `load`: of the former the largest states (`_peaks`) and what stays; the last
    alone where layers are too many to write out.
    """
    if parameter_table.spec.depth > MOST_LAYERS:
        return {"load_peak": [load_rows(parameter_table)], "load": [load_rows(parameter_table)]}
    load = loaded(parameter_table, USUAL_RANK, layers_of)
    out = load.out
    stays = load_rows(parameter_table)
    adapters = frozenset(t.name for adapter in parameter_table.adapters.values() for t in adapter.tensors)
    peaks = _peaks(out, load.adapted, adapters)
    if out.product is not None:
        workspace = _workspace(parameter_table.setup)
        stays = [*stays, *workspace]
        peaks = [(place, [*rows, *workspace] if place > out.product else rows) for place, rows in peaks]
    return {"load_peak": [stays, *(rows for _, rows in peaks)], "load": [stays]}


def _workspace(setup: Setup) -> list[SymbolicRow]:
    """The cuBLAS workspace of a load that multiplies."""
    device = device_of(setup)
    if device.kind == "cpu":
        return []
    size = device.workspace
    name = workspace_name(THREADS[0])
    return [SymbolicRow(name, (size,), "uint8", 1, as_expr(size), "temporaries", HELD)]


@lru_cache(maxsize=32)
def _peaks(out: NamedEvents, adapted: int, adapters: frozenset[str]) -> list[tuple[int, list[SymbolicRow]]]:
    """The largest state before there are adapters and the largest with them, of those without a cuBLAS
    workspace and of those with it: after how many events, and its rows.
    """
    gone = {~event: place for place, event in enumerate(out.events) if event < 0}
    ends = sorted({0, adapted, len(out.events), *([] if out.product is None else [out.product])})
    return [(place, _rows(out, place, gone, adapters)) for place in _largest(out, list(pairwise(ends)))]


def _largest(out: Events, spans: Sequence[tuple[int, int]]) -> list[int]:
    """After how many events most bytes are allocated, in each span that is not empty."""
    sizes = out.sizes
    known = len(sizes)  # no id is higher: the cache is emptied
    changes = [-sizes[~event] if event < 0 else sizes[event] if event < known else 0 for event in out.events]
    after = [0, *accumulate(changes)]
    return [after.index(max(after[begin + 1 : end + 1]), begin + 1) for begin, end in spans if end > begin]


def _rows(
    out: NamedEvents, place: int, gone: Mapping[int, int], adapters: frozenset[str]
) -> list[SymbolicRow]:
    """The rows alive after so many events: what the load frees later is temporary. `gone`: where each tensor
    that it frees is freed.
    """
    names, sizes = out.names, out.sizes
    known, never = len(sizes), len(out.events)
    alike: dict[tuple[About, bool], list[int]] = {}  # the bytes of each tensor that is one row
    for event in out.events[:place]:
        if 0 <= event < known and (end := gone.get(event, never)) >= place:
            key = names[event], end < never
            if key in alike:
                alike[key].append(sizes[event])
            else:
                alike[key] = [sizes[event]]
    return [
        _row(about, len(each), sum(each), passing, about[0] in adapters)
        for (about, passing), each in alike.items()
    ]


def _row(about: About, count: int, nbytes: int, passing: bool, by_rank: bool) -> SymbolicRow:
    name, shape, dtype, what = about
    component: Component = "temporaries" if passing else "weights"
    size: Expr = packed_bytes(product(shape), dtype) * count if by_rank else as_expr(nbytes)
    said = f"{name}{what}" if not passing or what else f"{name} ({dtype})"
    why = "held while the model is built, then freed" if passing else "held for the whole run"
    return SymbolicRow(said, shape, dtype, count, size, component, why)
