"""Published runs as both engines score them: `published_data/scores.json`, which ships with the package.

One line a run: its traits, what was measured, and what each engine predicts for each quantity, in bytes.
`as_recorded` is the prediction with what the run's own libraries did otherwise. Read by every prediction, so
nothing heavy is imported here; `published_scores` makes the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from memplan.planner.tables.errors import UsageError
from memplan.validate.likeness import Traits

SHIPPED = Path(__file__).with_name("published_data") / "scores.json"
SCHEMA = "memplan.published_scores/1"
ENGINES = ("formula", "trace")
QUANTITIES = ("allocated", "reserved", "device")


@dataclass(frozen=True, slots=True)
class EngineScore:
    """What one engine predicts for one run, by quantity, in bytes; `reason` says why where it predicts
    nothing. `key`: the hash of what the prediction was made from.
    """

    key: str
    predicted: Mapping[str, int] = field(default_factory=dict)
    as_recorded: Mapping[str, int] | None = None
    reason: str = ""

    @property
    def best(self) -> Mapping[str, int]:
        """The prediction on the run's own libraries where they are put back, else on the installed ones."""
        return self.predicted if self.as_recorded is None else self.as_recorded


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """One published run, what it is like, and what the engines predict for it."""

    id: str
    gpu: str
    gpus: int
    traits: Traits
    parameters: int
    measured: Mapping[str, int]
    counted: bool
    development: bool
    differs: tuple[str, ...]
    engines: Mapping[str, EngineScore]
    dry_run: Mapping[str, int] | None = None  # torch's own CUDA code on the same setup, without a GPU

    def dry_run_error(self, engine: str, quantity: str) -> float | None:
        """Predicted less what a dry run saw, as a share of the latter; None where either is not known."""
        score = self.engines.get(engine)
        if score is None or quantity not in score.best or quantity not in (self.dry_run or {}):
            return None
        assert self.dry_run is not None
        return score.best[quantity] / self.dry_run[quantity] - 1

    def error(self, engine: str, quantity: str) -> float | None:
        """Predicted less measured, as a share of the measured bytes; None where either is not known."""
        score = self.engines.get(engine)
        if score is None or quantity not in score.best or quantity not in self.measured:
            return None
        return score.best[quantity] / self.measured[quantity] - 1


def to_document(run: ScoredRun) -> dict[str, Any]:
    """One run's line of the file; errors are fractions of the measured bytes."""
    return {
        "id": run.id,
        "gpu": run.gpu,
        "gpus": run.gpus,
        "traits": dict(run.traits),
        "parameters": run.parameters,
        "measured": dict(run.measured),
        "counted": run.counted,
        "development": run.development,
        "differs": list(run.differs),
        **({"dry_run": dict(run.dry_run)} if run.dry_run is not None else {}),
        "engines": {
            engine: {
                "key": score.key,
                "predicted": dict(score.predicted),
                **({"as_recorded": dict(score.as_recorded)} if score.as_recorded is not None else {}),
                "errors": {
                    quantity: round(error, 6)
                    for quantity in run.measured
                    if (error := run.error(engine, quantity)) is not None
                },
                **({"reason": score.reason} if score.reason else {}),
            }
            for engine, score in run.engines.items()
        },
    }


def read(path: Path = SHIPPED) -> tuple[ScoredRun, ...]:
    """The scored runs of a file; none where there is no file. Raises UsageError for another schema."""
    if not path.is_file():
        return ()
    document = json.loads(path.read_text(encoding="utf-8"))
    if document.get("schema") != SCHEMA:
        raise UsageError(f"{path}: expected a document of schema {SCHEMA}, found {document.get('schema')!r}")
    return tuple(_read(run) for run in document["runs"])


def _read(run: Mapping[str, Any]) -> ScoredRun:
    scores = {
        engine: EngineScore(
            score["key"], score["predicted"], score.get("as_recorded"), score.get("reason", "")
        )
        for engine, score in run["engines"].items()
    }
    return ScoredRun(**{**run, "differs": tuple(run["differs"]), "engines": scores})


@cache
def shipped() -> tuple[ScoredRun, ...]:
    """The scored runs that ship with the package, read once."""
    return read()
