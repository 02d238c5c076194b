"""reconcile(prediction, measurement): per tier, moment and component what was predicted, what was measured,
and what stays unexplained.

Errors are (predicted - measured) / measured. Nothing is spread over rows: what no explanation covers is
`unexplained_bytes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from memplan.planner.prediction import Prediction, Row
from memplan.planner.tables.components import COMPONENTS, MOMENTS, STEP_MOMENTS
from memplan.planner.tables.errors import UsageError, shorten
from memplan.validate.suspects import CLOSE, SMALLEST, TOTAL, Suspect, explain

if TYPE_CHECKING:
    from memplan.profiler.record import Measurement

Outcome = Literal["right", "false_fits", "false_no", "tight", "unknown"]


@dataclass(frozen=True)
class Difference:
    """One number, both ways. `error` is a fraction of the measured one, None where that is 0 or either is
    unknown.
    """

    what: str  # allocated | reserved | device of the step's peak, or a component
    moment: str
    predicted: int
    measured: int

    @property
    def bytes(self) -> int:
        """Predicted less measured, bytes."""
        return self.predicted - self.measured

    @property
    def error(self) -> float | None:
        """Predicted less measured, as a fraction of the measured bytes; None where those are 0."""
        return self.bytes / self.measured if self.measured else None

    def to_document(self) -> dict[str, Any]:
        """Predicted and measured bytes and the error, for JSON."""
        return {
            "what": self.what,
            "moment": self.moment,
            "predicted": self.predicted,
            "measured": self.measured,
            "error": self.error,
        }


@dataclass(frozen=True)
class Reconciliation:
    """One run, reconciled with one engine's prediction of it."""

    case: str
    engine: str
    model: str
    method: str
    gpu: str | None
    tiers: Mapping[str, Difference]  # allocated, reserved, device
    moments: tuple[Difference, ...]  # `what` is allocated or a component
    suspects: tuple[Suspect, ...]
    unexplained_bytes: int | None
    outcome: str
    verdict: Outcome
    notes: tuple[str, ...] = ()
    development: bool = False
    alignment: Mapping[str, Any] | None = None
    dry: bool = False  # "measured" is what a dry run saw: no GPU's number

    @property
    def error(self) -> float | None:
        """The error of the tier that the engine is judged by: allocated, over the training step."""
        found = self.tiers.get("allocated")
        return found.error if found else None

    def to_document(self) -> dict[str, Any]:
        """This run as one entry of the memplan.validation/1 document."""
        return {
            "case": self.case,
            "engine": self.engine,
            "model": self.model,
            "method": self.method,
            "gpu": self.gpu,
            "outcome": self.outcome,
            "verdict": self.verdict,
            "predicted": {name: d.predicted for name, d in self.tiers.items()},
            "measured": {name: d.measured for name, d in self.tiers.items()},
            "error": {name: d.error for name, d in self.tiers.items()},
            "moments": [d.to_document() for d in self.moments],
            "suspects": [s.to_document() for s in self.suspects],
            "unexplained_bytes": self.unexplained_bytes,
            "development": self.development,
            "dry_run": self.dry,
            "notes": list(self.notes),
            "alignment": dict(self.alignment) if self.alignment else None,
        }


@dataclass(frozen=True)
class Predicted:
    """What reconciliation needs of a prediction, made now or read from a record's own `prediction`."""

    engine: str
    peaks: Mapping[str, int]  # allocated, reserved, context of the step's peak
    components: Mapping[str, Mapping[str, int]]
    rows: Mapping[str, tuple[Row, ...]]
    smallest_capacity: int | None
    worst_error: float | None = None

    @classmethod
    def of(cls, prediction: Prediction) -> Predicted:
        """What a prediction says of the training step and its moments."""
        peak = prediction.step_peak
        return cls(
            prediction.engine,
            {
                "allocated": peak.allocated_bytes,
                "reserved": peak.reserved_bytes,
                "context": peak.context_bytes,
            },
            {m.moment: m.components for m in prediction.moments},
            {m.moment: m.rows for m in prediction.moments},
            prediction.smallest_capacity_bytes,
            prediction.accuracy.margin,
        )

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Predicted:
        """From a memplan.prediction/1 document. Raises UsageError naming the key that is missing or wrong."""
        try:
            peak = document["step_peak"]
            moments = document["moments"]
            return cls(
                str(document["engine"]),
                {name: int(peak[f"{name}_bytes"]) for name in ("allocated", "reserved", "context")},
                {m["name"]: {c: int(m["components"].get(c, 0)) for c in COMPONENTS} for m in moments},
                {m["name"]: tuple(_row(row) for row in m.get("rows", ())) for m in moments},
                document.get("smallest_capacity_bytes"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"the prediction in the record cannot be read: {type(error).__name__} {shorten(str(error))}"
            ) from None

    def allocated(self, moment: str) -> int:
        """Allocated bytes at a moment's peak."""
        return sum(self.components[moment].values())


def _row(row: Mapping[str, Any]) -> Row:
    known = {
        key: row[key]
        for key in ("name", "dtype", "count", "bytes", "component", "why", "block_bytes")
        if key in row
    }
    return Row(shape=tuple(row["shape"]), **known)


def reconcile(
    prediction: Prediction | Predicted, measurement: Measurement, references: Iterable[Row] = ()
) -> Reconciliation:
    """Prediction against measurement. `references` are rows known from elsewhere (the other engine, the
    model's shapes), by which a row that the prediction lacks can still be named.
    """
    predicted = prediction if isinstance(prediction, Predicted) else Predicted.of(prediction)
    tiers = _tiers(predicted, measurement)
    moments = tuple(_moments(predicted, measurement))
    gaps = {(d.moment, TOTAL if d.what == "allocated" else d.what): d.bytes for d in moments}
    suspects, left = explain(gaps, predicted.rows, tuple(references)) if moments else ((), {})
    unexplained = _at_peak(left, measurement) if moments else None
    return Reconciliation(
        measurement.case,
        predicted.engine,
        str(measurement.model.get("name")),
        measurement.setup.method,
        measurement.environment.get("gpu"),
        tiers,
        moments,
        suspects,
        unexplained,
        measurement.outcome,
        judge_outcome(predicted, measurement),
        (*_notes(measurement, predicted), *event_notes(measurement.alignment, moments)),
        bool(measurement.extra.get("development")),
        measurement.alignment,
        measurement.dry,
    )


def _tiers(predicted: Predicted, measurement: Measurement) -> dict[str, Difference]:
    peak = measurement.step_peak
    if measurement.outcome != "ok" or peak is None:
        return {}
    found = {
        "allocated": Difference("allocated", peak.moment, predicted.peaks["allocated"], peak.allocated_bytes)
    }
    if peak.reserved_bytes is not None:
        found["reserved"] = Difference(
            "reserved", peak.moment, predicted.peaks["reserved"], peak.reserved_bytes
        )
    device = peak.device_bytes
    if device is not None:
        found["device"] = Difference(
            "device", peak.moment, predicted.peaks["reserved"] + predicted.peaks["context"], device
        )
    return found


def _moments(predicted: Predicted, measurement: Measurement) -> Iterable[Difference]:
    """Every moment that both know: its total, and its components where the record has the allocator's
    history.
    """
    if measurement.outcome != "ok":
        return
    for moment in measurement.moments:
        if moment.name not in predicted.components:
            continue
        yield Difference("allocated", moment.name, predicted.allocated(moment.name), moment.allocated_bytes)
        for component in COMPONENTS if moment.components is not None else ():
            measured = measured_component(moment.components or {}, component)
            yield Difference(
                component, moment.name, predicted.components[moment.name].get(component, 0), measured
            )


def measured_component(components: Mapping[str, int], component: str) -> int:
    """A component as the allocator's history has it. Blocks that nothing claims are counted beside
    temporaries, which is what the prediction calls a block of no other component: history knows no names.
    """
    extra = components.get("unattributed", 0) if component == "temporaries" else 0
    return components.get(component, 0) + extra


def _at_peak(left: Mapping[tuple[str, str], int], measurement: Measurement) -> int:
    """What stays unexplained at the moment of the measured peak."""
    peak = measurement.step_peak
    names = [m for m, what in left if what == TOTAL and m in STEP_MOMENTS]
    moment = (
        peak.moment
        if peak is not None and peak.moment in names
        else (names or [m for m, _ in left] or [""])[0]
    )
    return left.get((moment, TOTAL), 0)


def judge_outcome(predicted: Predicted, measurement: Measurement) -> Outcome:
    """Whether the verdict was right: an `oom` under a cap says that the run does not fit it, an `ok` that it
    does.

    `tight` counts as neither right nor wrong. Without a cap only an oom on a GPU of known size says anything
    beyond ok.
    """
    limit = measurement.cap_bytes or _card_bytes(measurement)
    if measurement.outcome not in ("ok", "oom") or limit is None:
        return "unknown"
    most = max(predicted.peaks["reserved"], 0)
    least = (
        predicted.smallest_capacity - predicted.peaks["context"]
        if predicted.smallest_capacity is not None
        else most
    )
    if predicted.smallest_capacity is None and predicted.worst_error:
        slack = round(predicted.peaks["allocated"] * predicted.worst_error)
        least, most = least - slack, most + slack
    if most <= limit:
        return "right" if measurement.outcome == "ok" else "false_fits"
    if least > limit:
        return "right" if measurement.outcome == "oom" else "false_no"
    return "tight"


def _card_bytes(measurement: Measurement) -> int | None:
    """What the GPU offers the allocator: its total less the context, where the environment says both."""
    total, context = measurement.environment.get("total_bytes"), measurement.environment.get("context_bytes")
    return total - context if isinstance(total, int) and isinstance(context, int) else None


def _notes(measurement: Measurement, predicted: Predicted) -> Iterable[str]:
    yield from version_notes(measurement)
    if measurement.outcome != "ok":
        yield f"the run ended in {measurement.outcome}: a truth about the verdict, not about sizes"
    unknown = [m.name for m in measurement.moments if m.name not in predicted.components]
    if unknown:
        yield f"not predicted: {', '.join(unknown)}"
    if measurement.outcome == "ok" and all(m.components is None for m in measurement.moments):
        yield "the record has no allocator history: components cannot be compared"
    missing = [
        m
        for m in MOMENTS
        if m in predicted.components and all(m != have.name for have in measurement.moments)
    ]
    if measurement.outcome == "ok" and missing:
        yield f"not measured: {', '.join(missing)}"


def event_notes(alignment: Mapping[str, Any] | None, moments: Iterable[Difference]) -> list[str]:
    """Aligned events that only one side has and whose bytes are those of a moment's gap: the allocation that
    is missing or too much.
    """
    notes = []
    gaps = {d.moment: d.bytes for d in moments if d.what == "allocated"}
    for event in (alignment or {}).get("unmatched", ()):
        gap, size = gaps.get(event["moment"], 0), event["bytes"]
        side = "measured" if gap < 0 else "predicted"
        near = any(abs(abs(gap) - size * times) <= CLOSE * abs(gap) for times in {1, event["count"]})
        if event["kind"] == "alloc" and event["only"] == side and abs(gap) >= SMALLEST and near:
            what = f"{size:,} B x{event['count']} at {event.get('where') or 'an operation without a name'}"
            notes.append(
                f"the gap of {gap:+,} bytes in {event['moment']} is that of an allocation only {side}: {what}"
            )
    return notes


def version_notes(measurement: Measurement) -> list[str]:
    """Libraries whose version here differs from the record's, one note in all; empty where none is
    installed.
    """
    from importlib.metadata import PackageNotFoundError, version

    differ = []
    for name, theirs in sorted(dict(measurement.environment.get("versions") or {}).items()):
        try:
            ours = version(name)
        except (PackageNotFoundError, ValueError):
            continue
        if theirs and ours.partition("+")[0] != str(theirs).partition("+")[0]:
            differ.append(f"{name} {theirs} (here {ours})")
    return [f"recorded with {', '.join(differ)}"] if differ else []
