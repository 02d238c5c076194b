"""What the lengths of a dataset make of a prediction: how often which batch is met, what padding takes, and
what batches of different lengths leave reserved.

The prediction itself is that of the longest batch, which a run meets sooner or later. Its steps are those of
the formula: `accumulated` replays a seeded run of them through the caching allocator, freely and on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from memplan.planner.allocator.native import OutOfMemory
from memplan.planner.allocator.replay import Mode
from memplan.planner.answers.fit.limits import limits
from memplan.planner.answers.verdict import judge, margin, withhold
from memplan.planner.formula.engine import replays, varied_run
from memplan.planner.inputs.batches import Batches, Loader
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.prediction import Prediction
from memplan.planner.tables.gpus import Gpu, find_gpu
from memplan.planner.tables.progress import tell

PERCENTILES = {"formula": (50, 90, 95, 99), "trace": (50, 95)}
"""Of a step's length; each is another trace."""
SEEDS = (0, 1)
BEFORE, AFTER = 24, 8
"""Steps that are drawn before the longest batch, and after it: it is where a run's reserved memory ends."""
UNREPLAYED = "what different lengths leave reserved (with expandable segments next to none)"


def with_lengths(
    prediction: Prediction,
    loader: Loader,
    spec: ModelSpec | None,
    at: Callable[[int], Prediction],
) -> Prediction:
    """The prediction of the longest batch with the document's `lengths`. `at`: the same setup's at another
    length. A lower bound where the allocator fragments and no run of different lengths can be replayed.
    """
    setup = prediction.setup
    batches = loader.batches(setup)
    row, size = setup.sequence_length, prediction.step_peak.allocated_bytes
    document = {**_of_data(loader), "batches": _kind(loader, setup)}
    if loader.packs:
        document["worst"] = {"length": row, "once_in_steps": 1.0, "first_step": 1.0, "step_bytes": size}
        document |= {"examples_per_row": row / loader.lengths.mean_up_to(row), "padding": 0.0}
        return _with(prediction, document)
    document["worst"] = {**_met(batches, row), "step_bytes": size}
    if not setup.padding_free:
        document["steps"] = list(_percentiles(batches, prediction, at))
        document["padding"] = batches.padding
        document["otherwise"] = _otherwise(loader, setup)
    if spec is not None and len(batches.values) > 1 and replays(spec, setup):
        document["reserved"] = accumulated(spec, setup, batches)
    return withhold(_with(prediction, document), unreplayed(spec, setup, loader))


def unreplayed(spec: ModelSpec | None, setup: Setup, loader: Loader) -> tuple[str, ...]:
    """What is not counted where the allocator fragments and no run of different lengths can be replayed."""
    alike = loader.packs or len(loader.batches(setup).values) == 1
    if alike or setup.allocator == "expandable" or setup.device != "cuda":
        return ()
    return () if spec is not None and replays(spec, setup) else (UNREPLAYED,)


def _with(prediction: Prediction, document: dict[str, Any]) -> Prediction:
    return prediction.with_(extra={**prediction.extra, "lengths": document})


def _of_data(loader: Loader) -> dict[str, Any]:
    lengths, limit = loader.lengths, loader.limit
    over = 0.0 if limit is None else 1 - lengths.up_to(limit) / lengths.total
    return {
        "source": lengths.source,
        "law": lengths.law or None,
        "examples": lengths.examples,
        "mean": lengths.mean,
        "p95": lengths.quantile(0.95),
        "max": lengths.longest,
        "cut_at": limit,
        "cut_share": over,
    }


def _kind(loader: Loader, setup: Setup) -> str:
    if loader.packs:
        return "packed"
    if setup.padding_free:
        return "padding_free"
    return "by_length" if setup.group_by_length else "random"


def _met(batches: Batches, length: int) -> dict[str, Any]:
    """How often a batch of so many tokens a row or more is met."""
    return {
        "length": length,
        "once_in_steps": 1 / batches.at_least(length),
        "first_step": batches.first(length),
    }


def _percentiles(
    batches: Batches, prediction: Prediction, at: Callable[[int], Prediction]
) -> Iterator[dict[str, Any]]:
    known = {batches.worst: prediction.step_peak.allocated_bytes}
    for percentile in PERCENTILES[prediction.engine]:
        length = batches.quantile(percentile / 100)
        if length not in known:
            tell(f"a step of {length:,} tokens")
            known[length] = at(length).step_peak.allocated_bytes
        yield {"percentile": percentile, **_met(batches, length), "step_bytes": known[length]}


def _otherwise(loader: Loader, setup: Setup) -> dict[str, Any]:
    """What other ways to make batches change: the share of padding, the median step, full rows."""
    lengths, row = loader.lengths, setup.sequence_length
    found: dict[str, Any] = {}
    for how in ("random", "by_length"):
        batches = loader.batches(setup, how)  # type: ignore[arg-type]
        found[how] = {
            "padding": batches.padding,
            "median": batches.quantile(0.5),
            "first_worst_step": batches.first(batches.worst),
        }
    examples = row / lengths.mean_up_to(row)
    found["packed"] = {"padding": 0.0, "examples_per_row": examples, "steps_share": 1 / examples}
    return found


# ---- what different lengths leave reserved -----------------------------------------------------------------


def run_of(batches: Batches, setup: Setup, seed: int) -> Iterator[tuple[int, bool]]:
    """A seeded run of one GPU's steps, with the longest batch among them: first where batches are sorted,
    else behind BEFORE others.
    """
    drawn = batches.drawn(seed, batches.rows * setup.gradient_accumulation)
    if batches.how == "by_length":
        return islice(drawn, BEFORE + AFTER + 1)
    return chain(islice(drawn, BEFORE), [(batches.worst, setup.padded)], islice(drawn, AFTER))


def accumulated(spec: ModelSpec, setup: Setup, batches: Batches) -> dict[str, Any]:
    """Reserved bytes at the end of seeded runs whose batches have different lengths, where nothing bounds
    them.
    """
    tell("replaying a run of different lengths")
    native = [_most(spec, setup, batches, seed, "native") for seed in SEEDS]
    expandable = _most(spec, setup, batches, SEEDS[0], "expandable")
    return {
        "steps": BEFORE + AFTER + 1,
        "seeds": list(SEEDS),
        "native": {"low_bytes": min(native), "high_bytes": max(native)},
        "expandable": {"low_bytes": expandable, "high_bytes": expandable},
    }


def _most(spec: ModelSpec, setup: Setup, batches: Batches, seed: int, mode: Mode) -> int:
    run = varied_run(spec, setup, mode)
    assert run is not None, "asked for where runs are replayed"
    return max(run.step(step)[1] for step in run_of(batches, setup, seed))


def judged(prediction: Prediction, loader: Loader, spec: ModelSpec | None) -> Prediction:
    """The prediction with verdicts for a run of different lengths: `tight` in place of `fits` where that runs
    out of memory, though the longest batch alone does not. Each GPU is asked, smallest first, up to the first
    that survives; for the one that is named the document has what was found.
    """
    lengths = prediction.extra["lengths"]
    if "reserved" not in lengths or spec is None:
        return _up_to(prediction, loader, spec)
    verdicts, survived, named = [], False, prediction.setup.gpu
    most = lengths["reserved"][prediction.setup.allocator]["high_bytes"]
    for verdict in sorted(prediction.gpus, key=lambda verdict: verdict.usable_bytes):
        gpu = find_gpu(named or verdict.name)
        if verdict.verdict == "fits" and not survived and most > gpu.usable_bytes - gpu.context_bytes:
            found = on_gpu(spec, prediction, loader, gpu)
            survived = found["survives"]
            verdict = verdict if survived else replace(verdict, verdict="tight")
            if named:
                prediction = _with(prediction, {**lengths, "on_gpu": found})
        verdicts.append(verdict)
    places = [verdict.name for verdict in prediction.gpus]
    verdicts.sort(key=lambda verdict: places.index(verdict.name))
    return _up_to(prediction.with_(gpus=tuple(verdicts)), loader, spec)


def on_gpu(spec: ModelSpec, prediction: Prediction, loader: Loader, gpu: Gpu) -> dict[str, Any]:
    """Seeded runs of different lengths within what a GPU has, less the engine's error: whether they survive,
    and how often the cache is given back.
    """
    setup, batches = prediction.setup, loader.batches(prediction.setup)
    setup = setup.with_(gpu=setup.gpu or gpu.name)  # whose kernels
    capacity = round((gpu.usable_bytes - gpu.context_bytes) / (1 + margin(prediction)))
    releases = served = 0
    for seed in SEEDS:
        run = varied_run(spec, setup, capacity=capacity)
        assert run is not None, "asked for where runs are replayed"
        try:
            for step in run_of(batches, setup, seed):
                run.step(step)
                served += 1
        except OutOfMemory:
            return {"survives": False, "releases": None, "steps": served}
        releases += run.releases
    return {"survives": True, "releases": releases, "steps": served}


def _up_to(prediction: Prediction, loader: Loader, spec: ModelSpec | None) -> Prediction:
    """With the longest row that surely fits the GPU named, where the longest batch does not surely fit."""
    setup = prediction.setup
    if setup.gpu is None or spec is None or loader.packs or setup.padding_free or prediction.not_modelled:
        return prediction
    alone = judge(prediction, find_gpu(setup.gpu)).verdict
    if alone == "fits":
        return prediction
    found = limits(spec, setup, find_gpu(setup.gpu), margin(prediction)).longest_sequence
    longer = loader.batches(setup).longer(found or 0)
    up_to = {"length": found, "longer_once_in_steps": 1 / longer if longer else None}
    return _with(prediction, {**prediction.extra["lengths"], "fits_up_to": up_to})
