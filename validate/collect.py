"""Records from files and folders, each with the predictions of it: by the formula now, by the trace now or as
the record holds it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest.mock import patch

from memplan.planner.inputs.models import find
from memplan.planner.prediction import Row
from memplan.planner.tables.errors import UsageError
from memplan.profiler.files import read_value
from memplan.profiler.record import Measurement, load, scan
from memplan.validate.development import is_rows, read_rows
from memplan.validate.engines import Missing, by_formula, by_trace
from memplan.validate.reconcile import Predicted, Reconciliation, reconcile
from memplan.validate.reference_rows import known_rows

ENGINES = ("formula", "trace")


@dataclass(frozen=True)
class Skipped:
    """A record that could not be reconciled with one engine, and why. Counted, never silently left out."""

    case: str
    engine: str
    reason: str


def read_records(paths: Sequence[Path]) -> list[Measurement]:
    """The records of files and folders (folders named raw are skipped). Raises UsageError for a file that is
    none, naming it.
    """
    found: list[Measurement] = []
    for path in paths:
        if os.path.isdir(path):
            found += _folder(path)
        else:
            found += _file(path)
    if not found:
        raise UsageError(
            f"no measurement under {', '.join(map(str, paths))}: record some with memplan profile --save or "
            "memplan campaign"
        )
    return found


def _folder(path: Path) -> Iterable[Measurement]:
    records, problems = scan(path)
    found = [measurement for _, measurement in records]
    for problem in problems:
        file = next((p for p in sorted(path.rglob("*.json")) if problem.startswith(str(p))), None)
        rows = _rows(file) if file is not None else None
        if rows is None:
            raise UsageError(problem)
        found += rows
    return found


def _file(path: Path) -> Iterable[Measurement]:
    if not os.path.lexists(path):
        raise UsageError(f"'{path}' does not exist: expected a record or a folder of records")
    return _rows(path) or [load(path)]


def _rows(path: Path) -> list[Measurement] | None:
    """The file's rows of the development set; None where it holds none."""
    try:
        document = read_value(path)
    except UsageError:
        return None
    return read_rows(path) if is_rows(document) else None


def recorded(folder: Path | None = None) -> tuple[Measurement, ...]:
    """The measurements under `folder` (a record, a folder, or published rows; UsageError where there is
    none), by default those under ./measurements: none where there is no such folder, and unreadable files
    there are not evidence. Dry runs measured nothing and are left out.
    """
    where = Path("measurements")
    if folder is not None:
        found = read_records([folder])
    else:
        found = [measurement for _, measurement in scan(where)[0]] if where.is_dir() else []
    return tuple(measurement for measurement in found if not measurement.dry)


def predicted(measurement: Measurement, engine: str, stored: bool = False) -> Predicted:
    """One engine's prediction of a record's model and setup. Raises Missing where it cannot be made, saying
    why.

    `stored`: take the trace that the record holds, made in its own environment, instead of tracing again with
    the libraries here.
    """
    if engine == "trace" and stored:
        if measurement.prediction is None:
            raise Missing("the record holds no prediction")
        return Predicted.read(measurement.prediction)
    config = measurement.model.get("config")
    if not isinstance(config, dict) or not config:
        raise Missing(f"the record of {measurement.model.get('name')} holds no config of its model")
    name = str(measurement.model.get("name") or "model")
    try:
        model = find({**config, "_name_or_path": name})
        if engine == "formula":
            return Predicted.of(by_formula(model, measurement.setup))
        with as_recorded(measurement):
            return Predicted.of(by_trace(model, measurement.setup))
    except UsageError as error:
        raise Missing(str(error)) from None


@contextmanager
def as_recorded(measurement: Measurement) -> Iterator[None]:
    """What a record says of its transformers that today's does otherwise: keys and values expanded before the
    attention call.
    """
    if not measurement.extra.get("expanded_keys"):
        yield
        return
    try:
        expanding = patch(
            "transformers.integrations.sdpa_attention.use_gqa_in_sdpa", lambda *args, **kwargs: False
        )
        with expanding:
            yield
    except ImportError as error:
        raise Missing(
            f"the trace engine: {error.name or error} is not installed (pip install 'memplan[trace]')"
        ) from None


def references(measurement: Measurement) -> list[Row]:
    """Rows that the model's shapes alone lead one to expect; none where the formula cannot read the model."""
    config = measurement.model.get("config")
    try:
        return (
            known_rows(find(dict(config)).spec(), measurement.setup)
            if isinstance(config, dict) and config
            else []
        )
    except UsageError:
        return []


def reconcile_all(
    measurements: Iterable[Measurement],
    engines: Sequence[str] = ENGINES,
    trace_from: Literal["record", "here"] = "here",
) -> tuple[list[Reconciliation], list[Skipped]]:
    """Every record with every engine asked for."""
    done: list[Reconciliation] = []
    skipped: list[Skipped] = []
    for measurement in measurements:
        if measurement.outcome == "error":
            skipped.append(
                Skipped(
                    measurement.case,
                    "all",
                    f"the run failed: {measurement.failure.message if measurement.failure else '?'}",
                )
            )
            continue
        for engine in engines:
            try:
                found = predicted(measurement, engine, stored=trace_from == "record")
            except Missing as missing:
                skipped.append(Skipped(measurement.case, engine, str(missing)))
                continue
            done.append(reconcile(found, measurement, references(measurement)))
    return done, skipped
