"""Figures that others published, scored against predictions in a table of their own. They count towards no
tier and tune nothing.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from memplan.planner import __version__
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError, shorten
from memplan.validate.claimsfile import UNITS
from memplan.validate.engines import Missing
from memplan.validate.evaluation_context import EvaluationContext

SHIPPED = Path(__file__).with_name("published.toml")
SCHEMA = "memplan.published/1"
METRICS = ("allocated", "reserved", "active")
QUALITY = ("A", "B", "C")
NEEDED = ("id", "model", "setup", "metric", "value", "unit", "quality", "source")


@dataclass(frozen=True)
class Figure:
    """One published number and everything that was said about how it was measured."""

    id: str
    model: str
    setup: Mapping[str, Any]
    metric: Literal["allocated", "reserved", "active"]
    value: float
    unit: str
    quality: Literal["A", "B", "C"]
    source: str
    note: str = ""

    @property
    def value_bytes(self) -> int:
        """The published value in bytes."""
        return round(self.value * UNITS[self.unit])


@dataclass(frozen=True)
class Times:
    """What the same work took by LoRA and by QLoRA, in one unit, as others published it."""

    id: str
    lora: float
    qlora: float
    unit: str
    source: str


@dataclass(frozen=True)
class Score:
    """A figure and what an engine predicts for it; `reason` says why where it predicts nothing."""

    figure: Figure
    engine: str
    predicted: int | None
    reason: str = ""

    @property
    def error(self) -> float | None:
        """Predicted less published, as a fraction of the published value; None where nothing was
        predicted.
        """
        return (
            None
            if self.predicted is None
            else (self.predicted - self.figure.value_bytes) / self.figure.value_bytes
        )


def _document(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: {error}") from None
    if document.get("schema") != SCHEMA:
        raise UsageError(f"{path}: schema is {shorten(repr(document.get('schema')))}, expected {SCHEMA}")
    return document


def read_figures(path: Path = SHIPPED) -> tuple[Figure, ...]:
    """The figures of a TOML file. Raises UsageError naming file, figure and key."""
    document = _document(path)
    return tuple(
        _figure(table, f"{path}, figure {n}") for n, table in enumerate(document.get("figure", ()), start=1)
    )


def _figure(table: Mapping[str, Any], where: str) -> Figure:
    for key in NEEDED:
        if key not in table:
            raise UsageError(f"{where}: {key} is missing")
    legal = {"metric": METRICS, "quality": QUALITY, "unit": tuple(UNITS)}
    for key, names in legal.items():
        if table[key] not in names:
            raise UsageError(
                f"{where}: {key} is {shorten(repr(table[key]))}, expected one of "
                f"{', '.join(filter(None, names))}"
            )
    try:
        return Figure(**table)
    except TypeError as error:
        raise UsageError(f"{where}: {shorten(str(error))}") from None


@cache
def times() -> tuple[Times, ...]:
    """The published times, in the file's order."""
    return tuple(Times(**table) for table in _document(SHIPPED)["times"])


@cache
def figures() -> tuple[Figure, ...]:
    """The figures that ship with the package, read once."""
    return read_figures()


def score(engine: str = "formula", wanted: Sequence[Figure] | None = None) -> list[Score]:
    """Every figure predicted by one engine, worst error first, then those that it cannot predict."""
    context = EvaluationContext()
    scores = [_score(figure, engine, context) for figure in (figures() if wanted is None else wanted)]
    return sorted(scores, key=lambda s: (s.error is None, -abs(s.error or 0.0), s.figure.id))


def _score(figure: Figure, engine: str, context: EvaluationContext) -> Score:
    try:
        return Score(figure, engine, _predicted(figure, context.predict(figure.model, figure.setup, engine)))
    except Missing as missing:
        return Score(figure, engine, None, str(missing))


def _predicted(figure: Figure, prediction: Prediction) -> int:
    """The number of the metric over the training step: reserved is the allocator's, the others what is
    allocated.
    """
    peak = prediction.step_peak
    return peak.reserved_bytes if figure.metric == "reserved" else peak.allocated_bytes


def to_document(scores: Sequence[Score]) -> dict[str, Any]:
    """The document of `memplan validate --published --json`; sizes are in bytes."""
    return {
        "schema": "memplan.validation/1",
        "memplan_version": __version__,
        "published": [
            {
                **{
                    key: getattr(s.figure, key)
                    for key in ("id", "model", "metric", "quality", "source", "note")
                },
                "setup": dict(s.figure.setup),
                "published": s.figure.value_bytes,
                "predicted": s.predicted,
                "error": s.error,
                "engine": s.engine,
                "reason": s.reason or None,
            }
            for s in scores
        ],
    }
