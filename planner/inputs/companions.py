"""The models that a task holds beside the one it trains, by name, and whether they go together."""

from __future__ import annotations

from functools import cache

from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.errors import UsageError


def teacher_of(setup: Setup) -> ModelSpec | None:
    """The model that a setup learns from; None where there is none. Raises UsageError for a name that is not
    known, or a family that the formula has no rule for.
    """
    return None if setup.teacher is None else _named(setup.teacher)


@cache
def _named(name: str) -> ModelSpec:
    """One spec for each name: what is made of it is kept by identity."""
    return find(name).spec()


def same_vocabulary(field: str, name: str, trained: int, beside: int) -> None:
    """Raises UsageError where vocabularies of so many entries cannot be compared."""
    if trained != beside:
        raise UsageError(
            f"{field} '{name}' has {beside:,} entries in its vocabulary, the trained model {trained:,}: "
            "TRL compares entry by entry; name a teacher of the same family"
        )
