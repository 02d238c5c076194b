"""Runs that others saw fit a GPU or run out of memory, against the verdicts of both engines.

`published_data/outcomes.jsonl` has one a line. A row has a `setup`, or `unexpressed`: why memplan has none
for it. `assumed` names what was not published and is set to the least that is plausible (a rank of 8,
bfloat16): memory that runs out even so is a true `no`, and a `fits` says nothing of the run: it is
`undecided`, never right.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from memplan.planner.answers.verdict import judge, margin_of, not_modelled, withhold
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import find_gpu
from memplan.planner.tables.progress import telling
from memplan.validate.engines import Missing
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.input_key import input_key
from memplan.validate.published import DATA, EXPECTED, checked, is_text, lines_of
from memplan.validate.scored_runs import ENGINES

OUTCOMES = DATA / "outcomes.jsonl"
SHIPPED = DATA / "verdicts.json"
SCHEMA = "memplan.published_verdicts/1"
NEEDED = ("id", "outcome", "model", "gpu", "gpus", "capacity_gib", "quality", "source", "license", "settings")
JUDGED: dict[tuple[str, str | None], str] = {
    ("fits", "fits"): "right",
    ("oom", "no"): "right",
    ("fits", "tight"): "tight",
    ("oom", "tight"): "tight",
    ("oom", "fits"): "false fits",
    ("fits", "no"): "false no",
    ("fits", None): "no verdict",
    ("oom", None): "no verdict",
}
"""(what happened, what was predicted) -> what that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run that fit or ran out of memory, as published; `capacity_gib` is the GPU's, in GiB."""

    id: str
    outcome: Literal["fits", "oom"]
    model: str
    gpu: str
    gpus: int
    capacity_gib: float
    quality: str
    source: str
    license: str | None
    settings: Mapping[str, Any]
    setup: Mapping[str, Any] | None = None
    unexpressed: str = ""
    assumed: tuple[str, ...] = ()
    trivial: bool = False  # the weights or states alone exceed the GPU
    published_model: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class OutcomeScore:
    """One engine's verdict of one outcome, with the range that it rests on, in bytes; `reason` says why where
    there is none.
    """

    outcome: Outcome
    engine: str
    verdict: str | None
    low_bytes: int | None = None
    high_bytes: int | None = None
    usable_bytes: int | None = None
    reason: str = ""

    @property
    def judged(self) -> str:
        """right, tight, false fits, false no, no verdict, undecided (at assumed settings) or not
        predicted.
        """
        if self.high_bytes is None:
            return "not predicted"
        if self.outcome.assumed and self.verdict == "fits":
            return "undecided"
        return JUDGED[self.outcome.outcome, self.verdict]


_EXPECTED = {
    **{key: EXPECTED[key] for key in ("id", "model", "quality", "source", "license", "setup", "unexpressed")},
    **{key: EXPECTED[key] for key in ("published_model", "note")},
    "gpu": EXPECTED["model"],
    "outcome": (lambda v: v in ("fits", "oom"), "fits or oom"),
    "gpus": (lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0, "a number of GPUs"),
    "capacity_gib": EXPECTED["step_seconds"],
    "settings": (lambda v: isinstance(v, dict), "the settings as published"),
    "assumed": (
        lambda v: isinstance(v, list) and bool(v) and all(map(is_text, v)),
        "names of settings that were not published",
    ),
    "trivial": EXPECTED["development"],
}


def read_outcomes(path: Path = OUTCOMES) -> tuple[Outcome, ...]:
    """The outcomes of a file. Raises UsageError naming file, line and key."""
    found = []
    for where, row in lines_of(path):
        checked(row, where, _EXPECTED, NEEDED)
        if ("setup" in row) == ("unexpressed" in row):
            raise UsageError(f"{where}: expected either setup or unexpressed (why there is no setup)")
        found.append(Outcome(**{**row, "assumed": tuple(row.get("assumed", ()))}))
    return tuple(found)


@cache
def outcomes() -> tuple[Outcome, ...]:
    """The outcomes that ship with the package, read once."""
    return read_outcomes()


def score_outcome(outcome: Outcome, engine: str, context: EvaluationContext) -> OutcomeScore:
    """One engine's verdict of one outcome on the GPU that its setup names."""
    assert outcome.setup is not None
    try:
        prediction = context.predict(outcome.model, outcome.setup, engine)
    except Missing as missing:
        return OutcomeScore(outcome, engine, None, reason=str(missing))
    gpu = find_gpu(str(prediction.setup.gpu))
    found = withhold(prediction.with_(gpus=(judge(prediction, gpu),)), tuple(not_modelled(prediction))).gpus[
        0
    ]
    return OutcomeScore(
        outcome, engine, found.verdict, found.low_bytes, found.high_bytes, gpu.usable_bytes, found.why or ""
    )


def to_document(outcome: Outcome, scores: Mapping[str, tuple[str, OutcomeScore]]) -> dict[str, Any]:
    """One outcome's line of verdicts.json: what happened, and each engine's (key, score)."""
    return {
        "id": outcome.id,
        "outcome": outcome.outcome,
        "engines": {
            engine: {
                "key": key,
                "verdict": score.verdict,
                "judged": score.judged,
                "low_bytes": score.low_bytes,
                "high_bytes": score.high_bytes,
                "usable_bytes": score.usable_bytes,
                **({"reason": score.reason} if score.reason else {}),
            }
            for engine, (key, score) in scores.items()
        },
    }


def update(path: Path = SHIPPED) -> tuple[Mapping[str, Any], ...]:
    """Judge every outcome that has a setup by both engines and write the file after each; a trace whose
    inputs are the same is taken over.
    """
    known = {line["id"]: line for line in read(path)}
    wanted = [outcome for outcome in outcomes() if outcome.setup is not None]
    for number, outcome in enumerate(wanted, start=1):
        with telling(f"{number} of {len(wanted)}, {outcome.id}"):
            known[outcome.id] = _line(outcome, known.get(outcome.id))
        write([known[each.id] for each in wanted if each.id in known], path)
    shipped.cache_clear()
    return tuple(known[outcome.id] for outcome in wanted)


def key_of(outcome: Outcome, engine: str, context: EvaluationContext) -> str:
    """The hash of what one engine's verdict is made from, and of what happened; the trace's margin too."""
    assert outcome.setup is not None
    margin = margin_of(engine, context.setup(outcome.model, outcome.setup))
    return input_key(outcome.model, outcome.setup, context, engine, outcome.outcome, outcome.assumed, margin)


def _line(outcome: Outcome, known: Mapping[str, Any] | None) -> Mapping[str, Any]:
    context = EvaluationContext()
    scores = {engine: (key_of(outcome, engine, context), engine) for engine in ENGINES}
    old = known["engines"].get("trace") if known is not None else None
    fresh = {
        engine: (key, score_outcome(outcome, engine, context))
        for engine, (key, _) in scores.items()
        if not (engine == "trace" and old is not None and old["key"] == key)
    }
    line = to_document(outcome, fresh)
    if "trace" not in fresh:
        line["engines"]["trace"] = old
    return line


def write(lines: Iterable[Mapping[str, Any]], path: Path = SHIPPED) -> None:
    """Write the file, one outcome a line, whole or not at all."""
    rows = ",\n".join(json.dumps(line) for line in lines)
    partial = path.with_suffix(".partial")
    partial.write_text(f'{{"schema": "{SCHEMA}", "outcomes": [\n{rows}\n]}}\n', encoding="utf-8")
    os.replace(partial, path)


def read(path: Path = SHIPPED) -> tuple[Mapping[str, Any], ...]:
    """The lines of the file; none where there is no file. Raises UsageError for another schema."""
    if not path.is_file():
        return ()
    document = json.loads(path.read_text(encoding="utf-8"))
    if document.get("schema") != SCHEMA:
        raise UsageError(f"{path}: expected a document of schema {SCHEMA}, found {document.get('schema')!r}")
    return tuple(document["outcomes"])


@cache
def shipped() -> tuple[Mapping[str, Any], ...]:
    """The judged outcomes that ship with the package, read once."""
    return read()
