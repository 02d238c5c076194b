"""What the lengths of a dataset make of a prediction: how often which batch is met, what padding takes, and
what batches of different lengths leave reserved.

The prediction itself is that of the longest batch, which a run meets sooner or later. Its steps are those of
the formula: `accumulated` replays a seeded run of them through the caching allocator, freely and on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from memplan.planner.allocator.native import OutOfMemory
from memplan.planner.allocator.replay import Mode
from memplan.planner.answers.fit.limits import limits
from memplan.planner.answers.verdict import judge, margin, withhold
from memplan.planner.formula.engine import replays_alone, varied_run
from memplan.planner.inputs.batches import Batches, Loader
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.prediction import Prediction
from memplan.planner.tables.gpus import Gpu, find_gpu
from memplan.planner.tables.progress import tell

PERCENTILES = {"formula": (50, 90, 95, 99), "trace": (50, 95)}
"""Of a step's length; each is another trace."""
SEEDS = (0, 1)
BEFORE, STEADY, MOST = 24, 8, 64
"""Steps drawn before the longest batch; those at the end that reserve no more; all of them at most."""
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
    if spec is not None and len(batches.values) > 1 and replays_alone(spec, setup):
        document["reserved"] = accumulated(spec, setup, batches)
    return withhold(_with(prediction, document), unreplayed(spec, setup, loader))


def unreplayed(spec: ModelSpec | None, setup: Setup, loader: Loader) -> tuple[str, ...]:
    """What is not counted where the allocator fragments and no run of different lengths can be replayed."""
    alike = loader.packs or len(loader.batches(setup).values) == 1
    if alike or setup.allocator == "expandable" or setup.device != "cuda":
        return ()
    return () if spec is not None and replays_alone(spec, setup) else (UNREPLAYED,)


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
    """A seeded run of one GPU's steps without end, with the longest batch among them: first where batches are
    sorted, else behind BEFORE others.
    """
    drawn = batches.drawn(seed, batches.rows * setup.gradient_accumulation)
    if batches.how == "by_length":
        return drawn
    return chain(islice(drawn, BEFORE), [(batches.worst, setup.padded)], drawn)


@dataclass(frozen=True, slots=True)
class Replayed:
    """The most that a run reserved, in bytes, after how many steps, and how often its cache was given back;
    `steady`: the last STEADY steps reserved no more.
    """

    reserved: int
    steps: int
    releases: int
    steady: bool


def replayed(
    spec: ModelSpec,
    setup: Setup,
    batches: Batches,
    seed: int,
    mode: Mode | None = None,
    capacity: int | None = None,
) -> Replayed:
    """A seeded run up to where it reserves no more, the longest batch included, or to MOST steps. Raises
    OutOfMemory.
    """
    run = varied_run(spec, setup, mode, capacity)
    assert run is not None, "asked for where runs are replayed"
    most = unchanged = steps = 0
    for step in islice(run_of(batches, setup, seed), MOST):
        reserved = run.step(step)[1]
        unchanged = unchanged + 1 if reserved <= most else 0
        most, steps = max(most, reserved), steps + 1
        if steps > BEFORE and unchanged >= STEADY:
            break
    return Replayed(most, steps, run.releases, unchanged >= STEADY)


def accumulated(spec: ModelSpec, setup: Setup, batches: Batches) -> dict[str, Any]:
    """Reserved bytes at the end of seeded runs whose batches have different lengths, where nothing bounds
    them.
    """
    tell("replaying a run of different lengths")
    native = [replayed(spec, setup, batches, seed, "native") for seed in SEEDS]
    runs = {"native": native, "expandable": [replayed(spec, setup, batches, SEEDS[0], "expandable")]}
    every = [run for found in runs.values() for run in found]
    sizes = {
        mode: {
            "low_bytes": min(run.reserved for run in found),
            "high_bytes": max(run.reserved for run in found),
        }
        for mode, found in runs.items()
    }
    return {
        "steps": max(run.steps for run in every),
        "steady": all(run.steady for run in every),
        "seeds": list(SEEDS),
        **sizes,
    }


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
        if verdict.verdict == "fits" and not survived and most > _room(prediction, gpu):
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
    steps = releases = 0
    try:
        for seed in SEEDS:
            found = replayed(spec, setup, batches, seed, capacity=_room(prediction, gpu))
            steps, releases = steps + found.steps, releases + found.releases
    except OutOfMemory:
        return {"survives": False, "releases": None, "steps": None}
    return {"survives": True, "releases": releases, "steps": steps}


def _room(prediction: Prediction, gpu: Gpu) -> int:
    """What a GPU has for the allocator, bytes, less the engine's error."""
    return round((gpu.usable_bytes - gpu.context_bytes) / (1 + margin(prediction)))


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
