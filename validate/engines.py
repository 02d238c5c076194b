"""The two engines as functions of a model and a setup, and what it means that one cannot answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from memplan.planner.inputs.setup import Setup
from memplan.planner.prediction import Prediction
from memplan.profiler.localized_message import LocalizedMessage, said

if TYPE_CHECKING:
    from memplan.planner.inputs.models import Model

Engine = Callable[["Model", Setup], Prediction]


class Missing(Exception):
    """A check that cannot be made: `said` says what is missing. It becomes `not_checkable`, never a guess."""

    def __init__(self, what: LocalizedMessage | str, **values: Any) -> None:
        self.said = (
            what
            if isinstance(what, LocalizedMessage)
            else said(what, **values)
            if values
            else said("{what}", what=what)
        )
        super().__init__(str(self.said))


def by_formula(model: Model, setup: Setup) -> Prediction:
    """The formula's prediction. Raises UsageError where it has no rule for the model."""
    from memplan.planner.formula.engine import plan

    return plan(model.spec(), setup)


def without_replay(model: Model, setup: Setup) -> Prediction:
    """The formula's prediction of tensors, not replayed through the allocator, in a few ms."""
    from memplan.planner.formula.engine import plan

    return plan(model.spec(), setup, replayed=False)


def by_trace(model: Model, setup: Setup) -> Prediction:
    """The trace's prediction. Raises Missing where a library that it needs is not installed."""
    try:
        from memplan.planner.trace.engine import trace
    except ImportError as error:
        raise Missing(
            "the trace engine: {library} is not installed (pip install 'memplan[trace]')",
            library=error.name or str(error),
        ) from None
    return trace(dict(model.config), setup, model.name)
