"""What published runs say of a prediction: how many are like it, how far the engine was from them in each
quantity, and the nearest one. Every command asks `evidence`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memplan.planner.prediction import Prediction
from memplan.planner.tables.accuracy import Accuracy, PublishedEvidence, QuantityError
from memplan.planner.tables.gpus import find_gpu
from memplan.validate.evidence import Run, accuracy_of
from memplan.validate.likeness import SAME, alike, differing, traits
from memplan.validate.scored_runs import ENGINES, QUANTITIES, ScoredRun, shipped

SEEN = ("reserved", "device", "allocated")
"""Quantities by what people run out of, first."""


def evidence(
    prediction: Prediction,
    runs: Sequence[Run] | None = None,
    published: Sequence[ScoredRun] | None = None,
) -> Accuracy:
    """How far a prediction may be off, and what says so: our own recorded runs where some resemble it, else
    the published runs that are like it, and beside either the published evidence.

    `runs` are our own recorded ones, `published` the scored ones of others; by default those of the package.
    """
    own = accuracy_of(prediction, runs)
    if prediction.setup.device == "cpu":
        return own
    found = published_evidence(prediction, shipped() if published is None else published)
    if own.median_error is not None:
        return own.with_(published=found)
    known = found.errors.get("allocated")
    if known is None:
        return own.with_(evidence=sentence(found), nearest_run=None, published=found)
    return own.with_(
        median_error=known.median,
        worst_error=known.worst,
        runs=found.runs,
        evidence=sentence(found),
        nearest_run=found.nearest,
        margin_share=own.margin,
        published=found,
    )


def published_evidence(prediction: Prediction, published: Iterable[ScoredRun]) -> PublishedEvidence:
    """The published runs like a prediction, and the errors of its engine in them, by quantity."""
    own, engine = traits(prediction.setup), prediction.engine
    scored = [run for run in published if engine in run.engines and run.engines[engine].best]
    like = [run for run in scored if alike(own, run.traits)]
    counted = [run for run in like if run.counted]
    nearest = min(scored, key=lambda run: _distance(prediction, own, run), default=None)
    return PublishedEvidence(
        runs=len(counted),
        gpus=tuple(dict.fromkeys(find_gpu(run.gpu).name for run in counted)),
        errors={
            quantity: found
            for quantity in QUANTITIES
            if (found := error_of(run.error(engine, quantity) for run in counted)) is not None
        },
        other_libraries=len(like) - len(counted),
        dry_runs=sum(run.dry_run is not None for run in like),
        dry_run_errors={
            quantity: found
            for quantity in QUANTITIES
            if (found := error_of(run.dry_run_error(engine, quantity) for run in like)) is not None
        },
        nearest=nearest.id if nearest is not None else None,
        nearest_differs=differing(own, nearest.traits) if nearest is not None else (),
        nearest_errors=_errors(nearest, engine) if nearest is not None else {},
    )


def _errors(run: ScoredRun, engine: str) -> Mapping[str, float]:
    found = {quantity: run.error(engine, quantity) for quantity in QUANTITIES}
    return {quantity: error for quantity, error in found.items() if error is not None}


def error_of(errors: Iterable[float | None]) -> QuantityError | None:
    """Number, median, P95 and worst of absolute errors, as shares; None where there are none."""
    known = sorted(abs(error) for error in errors if error is not None)
    if not known:
        return None
    middle = len(known) // 2
    median = known[middle] if len(known) % 2 else (known[middle - 1] + known[middle]) / 2
    return QuantityError(len(known), median, known[math.ceil(0.95 * len(known)) - 1], known[-1])


def _distance(prediction: Prediction, own: Mapping[str, Any], run: ScoredRun) -> tuple[float, ...]:
    """How far a run is from a prediction: traits that differ, those that must not first, then whether its
    libraries did otherwise, then the ratio of the parameters.
    """
    names = differing(own, run.traits)
    ratio = abs(math.log2(max(prediction.model.parameters, 1) / max(run.parameters, 1)))
    hard = sum(name in SAME for name in names)
    return (hard, len(names), not run.counted, ratio)


def sentence(found: PublishedEvidence) -> str:
    """All that published runs say, in one sentence."""
    other = (
        f"; {found.other_libraries} more whose libraries did otherwise are not counted"
        if found.other_libraries
        else ""
    )
    if found.dry_runs:
        count = f"{found.dry_runs} dry run{'' if found.dry_runs == 1 else 's'}"
        other += f"; apart from them {count}: {_each(found.dry_run_errors, found.dry_runs)}"
    if not found.runs:
        return f"{_none(found)}{other}"
    return f"{_count(found)}: {_each(found.errors, found.runs)}{other}"


def _each(errors: Mapping[str, QuantityError], runs: int) -> str:
    """The errors of each quantity; the number of runs where not all have it."""
    return "; ".join(
        f"{quantity} median {percent(error.median)}, worst {percent(error.worst)}"
        + (f" ({error.runs} runs)" if error.runs != runs else "")
        for quantity in QUANTITIES
        if (error := errors.get(quantity)) is not None
    )


def checked(accuracy: Accuracy) -> str:
    """The short sentence of the first screen: how many published runs are like this one, on which GPUs, and
    the error of what people run out of, reserved or device.
    """
    found = accuracy.published
    if found is None:
        if accuracy.median_error is None or accuracy.worst_error is None:
            return accuracy.evidence
        own = f"median {percent(accuracy.median_error)}, worst {percent(accuracy.worst_error)}"
        return f"{accuracy.evidence}: {own}"
    if not found.runs:
        return _none(found)
    quantity = next(name for name in SEEN if name in found.errors)
    error = found.errors[quantity]
    return f"{_count(found)}: {quantity} median {percent(error.median)}, worst {percent(error.worst)}"


def _count(found: PublishedEvidence) -> str:
    cards = ", ".join(name.partition("-")[0].upper() for name in found.gpus)
    return f"{found.runs} published run{'' if found.runs == 1 else 's'} like this ({cards})"


def _none(found: PublishedEvidence) -> str:
    if found.nearest is None:
        return "no published run is like this one"
    names = ", ".join(found.nearest_differs)
    return f"no published run is like this one; nearest: {found.nearest} (another {names})"


def percent(share: float) -> str:
    """A share as a percentage: one decimal, two below 0.1 %."""
    value = 100 * abs(share)
    return f"{value:.2f} %" if value < 0.095 else f"{value:.1f} %"


def reserved_rows(published: Iterable[ScoredRun]) -> list[dict[str, Any]]:
    """The rows of planner/tables/reserved_errors.json: P95 of the error of reserved (of device where that
    alone was published) over counted runs on one GPU, by engine, method class and checkpointing: as a share
    of what is predicted, which is what a verdict widens.
    """
    groups: dict[tuple[str, str, str], list[float]] = {}
    for run in published:
        if not run.counted or run.gpus > 1:
            continue
        for engine in ENGINES:
            error = run.error(engine, "reserved")
            error = run.error(engine, "device") if error is None else error
            if error is not None:
                key = (engine, str(run.traits["method"]), str(run.traits["checkpointing"]))
                groups.setdefault(key, []).append(1 / (1 + error) - 1)
    rows = []
    for (engine, method, checkpointing), errors in sorted(groups.items()):
        found = error_of(errors)
        assert found is not None
        rows.append(
            {
                "engine": engine,
                "method": method,
                "checkpointing": checkpointing,
                "p95": round(found.p95, 6),
                "runs": found.runs,
            }
        )
    return rows
