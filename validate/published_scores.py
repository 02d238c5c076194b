"""Published runs scored by both engines: how `published_data/scores.json` is made anew.

`as_recorded`: the trace is run with what the run's libraries did otherwise put back; the formula follows the
rules that it has for the run's own transformers, else its number moves by as much as the trace's did. A trace
takes seconds, so one whose inputs are the same is taken over; the formula is asked anew each time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from memplan.planner.formula.sharding.refusals import refuse_tracing
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import find_gpu
from memplan.planner.tables.progress import telling
from memplan.planner.tables.tested_versions import installed_versions
from memplan.validate.engines import Missing, by_trace
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.input_key import input_key
from memplan.validate.likeness import traits
from memplan.validate.published import DATA, EXPECTED, PublishedRun, checked, lines_of, published_runs
from memplan.validate.scored_runs import SCHEMA, SHIPPED, EngineScore, ScoredRun, read, shipped, to_document

DRY_RUNS = DATA / "dry_runs.jsonl"


def quantities(prediction: Prediction) -> dict[str, int]:
    """The three numbers that runs are measured by: allocated and reserved over the training step, device over
    the whole run, in bytes. What the allocator reserves without a bound, the GPU that ran it bounds.
    """
    step, gpu = prediction.step_peak, find_gpu(str(prediction.setup.gpu))
    return {
        "allocated": step.allocated_bytes,
        "reserved": min(step.reserved_bytes, gpu.usable_bytes - gpu.context_bytes),
        "device": min(prediction.peak.device_bytes, gpu.usable_bytes),
    }


def key_of(run: PublishedRun, engine: str, context: EvaluationContext) -> str:
    """The hash of what one engine's prediction of a run is made from, and of what was measured."""
    assert run.setup is not None
    about = (engine, run.put_back, dict(run.measured), run.differences)
    return input_key(run.model, run.setup, context, *about)


def by_engine(
    run: PublishedRun, engine: str, context: EvaluationContext, traced: EngineScore | None = None
) -> EngineScore:
    """One engine's score of a run; `traced` is the trace's, which says what the run's libraries moved. A run
    that the installed libraries refuse may still be traced with what its own did put back.
    """
    assert run.setup is not None
    key = key_of(run, engine, context)
    try:
        found, reason = quantities(context.predict(run.model, run.setup, engine)), ""
    except Missing as missing:
        found, reason = {}, str(missing)
    if engine == "trace":
        recorded = _traced_as_recorded(run, context)
    elif run.release and found:
        recorded = _as_of_release(run, context)
    else:
        recorded = moved(found, traced) if run.put_back and found else None
    return EngineScore(key, found, recorded, reason)


def _as_of_release(run: PublishedRun, context: EvaluationContext) -> Mapping[str, int] | None:
    """The formula of a run under its own transformers; None where it has no rule for the model there."""
    fields = {**(run.setup or {}), "transformers": run.release}
    try:
        return quantities(context.predict(run.model, fields, "formula"))
    except Missing:
        return None


def _traced_as_recorded(run: PublishedRun, context: EvaluationContext) -> Mapping[str, int] | None:
    """The trace of a run with what its libraries did otherwise put back; None where nothing is, or it cannot
    be traced.
    """
    if not run.put_back:
        return None
    assert run.setup is not None
    from memplan.planner.trace.earlier_releases import put_back

    setup = context.setup(run.model, run.setup)
    try:
        refuse_tracing(setup)
        with put_back(run.put_back):
            return quantities(by_trace(context.model(run.model), setup))
    except UsageError:
        return None


def moved(found: Mapping[str, int], traced: EngineScore | None) -> Mapping[str, int] | None:
    """A prediction moved by as much as what was put back moved the trace; None where either trace is
    missing.
    """
    if traced is None or traced.as_recorded is None or not traced.predicted:
        return None
    return {name: size + traced.as_recorded[name] - traced.predicted[name] for name, size in found.items()}


def scored(
    run: PublishedRun, context: EvaluationContext, known: ScoredRun | None = None, trace: bool = True
) -> ScoredRun:
    """A run scored by both engines; the trace of `known` is taken over where its key is the same, or where
    none is to be made.
    """
    assert run.setup is not None
    setup = context.setup(run.model, run.setup)
    traced = known.engines.get("trace") if known is not None else None
    if trace and (traced is None or traced.key != key_of(run, "trace", context)):
        traced = by_engine(run, "trace", context)
    engines = {"formula": by_engine(run, "formula", context, traced)}
    if traced is not None:
        engines["trace"] = traced
    return ScoredRun(
        run.id,
        str(setup.gpu),
        setup.gpus,
        traits(setup),
        context.spec(run.model).parameters,
        run.measured,
        run.counted,
        run.development,
        run.differences,
        engines,
        dry_runs().get(run.id),
    )


@cache
def dry_runs(path: Path = DRY_RUNS) -> Mapping[str, Mapping[str, int]]:
    """Run's id -> what torch's own CUDA code allocates and reserves on the same setup in a dry run (no GPU),
    in bytes; written by `benchmarks/published_dryrun.py --record`. Raises UsageError naming line and key.
    """
    found = {}
    for where, row in lines_of(path):
        checked(row, where, _DRY_RUN, tuple(_DRY_RUN))
        found[row["id"]] = {name: row[name] for name in ("allocated", "reserved")}
    return found


_DRY_RUN = {
    **{key: EXPECTED["id"] for key in ("id", "torch", "transformers")},
    **{key: EXPECTED["value_bytes"] for key in ("allocated", "reserved")},
}


def update(
    path: Path = SHIPPED,
    runs: Sequence[PublishedRun] | None = None,
) -> tuple[ScoredRun, ...]:
    """Score every run that has a setup and write the file after each: an update that was cut off goes on
    where it ended.
    """
    known = {run.id: run for run in read(path)}
    wanted = [run for run in (published_runs() if runs is None else runs) if run.setup is not None]
    for number, run in enumerate(wanted, start=1):
        with telling(f"{number} of {len(wanted)}, {run.id}"):
            known[run.id] = scored(run, EvaluationContext(), known.get(run.id))
        write([known[run.id] for run in wanted if run.id in known], path)
    shipped.cache_clear()
    return tuple(known[run.id] for run in wanted)


def write(runs: Iterable[ScoredRun], path: Path = SHIPPED) -> None:
    """Write the file, one run a line, whole or not at all."""
    lines = ",\n".join(json.dumps(to_document(run)) for run in runs)
    head = {"schema": SCHEMA, "libraries": installed_versions()}
    text = f'{json.dumps(head)[:-1]}, "runs": [\n{lines}\n]}}\n'
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
