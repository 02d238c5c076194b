"""The formula over NumPy arrays: the same compiled expressions, regime by regime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planner.expr import grid as expression_grid

if TYPE_CHECKING:
    from planner.formula import Symbolic


def evaluate(symbolic: Symbolic, batch: Any, sequence: Any, rank: Any) -> dict[str, Any]:
    """Allocated bytes by moment and `peak`, in the shape that the arrays broadcast to."""
    import numpy

    batch, sequence, rank = (numpy.asarray(x) for x in (batch, sequence, rank))
    shape = numpy.broadcast_shapes(batch.shape, sequence.shape, rank.shape)
    result: dict[str, Any] = {}
    for regime in symbolic.regimes():
        longer = numpy.ones(sequence.shape, bool)
        for window in symbolic.windows:
            longer &= (sequence >= window) if window in regime.windows else (sequence < window)
        where = numpy.broadcast_to(((batch == 1) == regime.single) & longer, shape)
        if not where.any():
            continue
        for name, values in _moments(symbolic, regime, batch, sequence, rank).items():
            values = numpy.broadcast_to(values, shape)
            result[name] = numpy.where(where, values, result[name]) if name in result else values.copy()
    result["peak"] = numpy.maximum.reduce(list(result.values()))
    return result


def _moments(symbolic: Symbolic, regime: Any, batch: Any, sequence: Any, rank: Any) -> dict[str, Any]:
    program = symbolic.program(regime)
    found = {}
    for name, states in program.moments.items():
        (found[name],) = expression_grid([state.size for state in states], {"B": batch, "S": sequence, "R": rank}, largest=True)
    return found
