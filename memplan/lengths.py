"""Predictions for a dataset's lengths: the setup of the longest batch, and what its engine and the replay say
of the others. Computes nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan import api
from memplan.engines import ENGINES, compiled
from memplan.planner.inputs import pictures
from memplan.planner.inputs.models import Model
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError

if TYPE_CHECKING:
    from memplan.planner.inputs.batches import Loader


def plan(
    model: api.ModelLike,
    setup: Setup | None = None,
    *,
    engine: str | None = None,
    lengths: str | Path | Iterable[int] | None = None,
    **fields: Any,
) -> Prediction:
    """The memory of one training step, predicted: `memplan.plan("llama-7b", method="qlora",
    gpu="rtx-4090").peak.device_bytes`.

    `engine` is formula or trace (default: formula, or trace for an adapter file). `setup` is a complete
    Setup, `fields` are Setup fields by name (micro_batch, sequence_length, rank, ...) or by the command
    line's (batch, seq, dtype, checkpointing=True). Sizes are bytes. With `lengths` (a file, mean:p95:max, or
    the lengths themselves) it is that of the longest batch; `extra["lengths"]` says how often that is met.
    Raises UsageError (unknown names, bad values), NetworkError (a model that only the hub has).
    """
    if lengths is None:
        return api.plan(model, setup, engine=engine, **fields)
    found, complete = api.request(model, setup, **fields)
    return predict(found, *applied(found, complete, lengths), engine)


def applied(model: Model, setup: Setup, lengths: str | Path | Iterable[int]) -> tuple[Setup, Loader]:
    """The setup of the longest batch that a run draws from such lengths, and its loader: `lengths` is a file,
    mean:p95:max, or the lengths themselves. Raises UsageError.
    """
    from memplan.planner.inputs.batches import loader_of
    from memplan.planner.inputs.lengths import of, read_lengths

    found = read_lengths(str(lengths)) if isinstance(lengths, str | Path) else of(lengths)
    loader = loader_of(found, setup, api.learned_positions(model))
    return pictures.with_lengths(model.config, loader.applied(setup)), loader


def predict(model: Model, setup: Setup, loader: Loader, engine: str | None = None) -> Prediction:
    """The prediction of the longest batch, with the document's `lengths` and verdicts that a run of different
    lengths was replayed for.
    """
    from memplan.planner.answers.lengths import judged, with_lengths

    prediction = api.predict(model, setup, engine)
    unknown = engine is None and api.traced_alone(model, setup)

    def at(length: int) -> Prediction:
        other = setup.with_(sequence_length=length)
        return compiled(model, other) if unknown else ENGINES[prediction.engine](model, other)

    spec = _replayed(model, setup)
    return judged(with_lengths(prediction, loader, spec, at), loader, spec)


def uncounted(model: Model, setup: Setup, loader: Loader) -> tuple[str, ...]:
    """What different lengths leave uncounted of a setup."""
    from memplan.planner.answers.lengths import unreplayed

    return unreplayed(_replayed(model, setup), setup, loader)


def _replayed(model: Model, setup: Setup) -> ModelSpec | None:
    """The model as the formula replays its runs; None where it has no rule for it."""
    if setup.adapter is not None or setup.merge or api.traced_alone(model, setup):
        return None
    try:
        return model.spec()
    except UsageError:
        return None
