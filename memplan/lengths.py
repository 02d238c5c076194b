"""Predictions for a dataset's lengths: the setup of the longest batch, and what its engine and the replay say
of the others. Computes nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from memplan import api
from memplan.engines import ENGINES, compiled
from memplan.planner.answers.lengths import judged, unreplayed, with_lengths
from memplan.planner.inputs import pictures
from memplan.planner.inputs.batches import Loader, loader_of
from memplan.planner.inputs.lengths import of, read_lengths
from memplan.planner.inputs.models import Model
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError


def applied(model: Model, setup: Setup, lengths: str | Path | Iterable[int]) -> tuple[Setup, Loader]:
    """The setup of the longest batch that a run draws from such lengths, and its loader: `lengths` is a file,
    mean:p95:max, or the lengths themselves. Raises UsageError.
    """
    found = read_lengths(str(lengths)) if isinstance(lengths, str | Path) else of(lengths)
    loader = loader_of(found, setup, api.learned_positions(model))
    return pictures.with_lengths(model.config, loader.applied(setup)), loader


def predict(model: Model, setup: Setup, loader: Loader, engine: str | None = None) -> Prediction:
    """The prediction of the longest batch, with the document's `lengths` and verdicts that a run of different
    lengths was replayed for.
    """
    prediction = api.predict(model, setup, engine)
    unknown = engine is None and api.traced_alone(model, setup)

    def at(length: int) -> Prediction:
        other = setup.with_(sequence_length=length)
        return compiled(model, other) if unknown else ENGINES[prediction.engine](model, other)

    spec = _replayed(model, setup)
    return judged(with_lengths(prediction, loader, spec, at), loader, spec)


def uncounted(model: Model, setup: Setup, loader: Loader) -> tuple[str, ...]:
    """What different lengths leave uncounted of a setup."""
    return unreplayed(_replayed(model, setup), setup, loader)


def _replayed(model: Model, setup: Setup) -> ModelSpec | None:
    """The model as the formula replays its runs; None where it has no rule for it."""
    if setup.adapter is not None or setup.merge or api.traced_alone(model, setup):
        return None
    try:
        return model.spec()
    except UsageError:
        return None
