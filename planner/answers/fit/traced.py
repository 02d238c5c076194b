"""What fits a GPU where the formula has no family: the same boundaries, from compiled traces.

Sequence lengths are looked for in steps of 64, at which a program of the whole regime answers; single changes
and other GPU counts are the formula's alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from memplan.planner.allocator.replay import replay
from memplan.planner.answers.fit.decide import Candidate, decide
from memplan.planner.answers.fit.frontier import MOST_BATCH, boundary
from memplan.planner.answers.fit.gpus import CardChoice, choice
from memplan.planner.answers.fit.kernels import older
from memplan.planner.answers.fit.suggest import under
from memplan.planner.answers.parts import parts
from memplan.planner.answers.search import METHODS_COMPARED, Fit, MethodFit, bounded, held
from memplan.planner.answers.verdict import Need, margin_of, need_of, uncounted_of, withheld
from memplan.planner.compiled.engine import Compiled
from memplan.planner.compiled.nodes import Point
from memplan.planner.compiled.regime import STEP
from memplan.planner.inputs.pictures import read_sizes
from memplan.planner.inputs.setup import Setup
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu, common_gpus
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.progress import tell, telling
from memplan.planner.tables.torch_versions import TORCH_VERSIONS

LONGEST = 2**20  # tokens: where no position limit is stated


def fit_by_trace(
    name: str,
    config: Mapping[str, Any],
    setup: Setup,
    gpu: Gpu,
    *,
    error: float = 0.0,
    methods: Iterable[str] = METHODS_COMPARED,
    not_modelled: Sequence[str] = (),
    **preferences: Any,
) -> Fit:
    """What fits `gpu` around `setup`, method by method. `error` is the trace's recorded worst error (a
    fraction). UsageError where the setup's own method cannot be traced.
    """
    if read_sizes(setup.images):
        raise UsageError(
            f"images {','.join(setup.images)}: fit varies the sequence, of which pictures are a part, and "
            "has no rule for that: use plan with the --batch and --seq in question, or --images none for text"
        )
    found, predictions = [], {}
    missing = tuple(dict.fromkeys((*not_modelled, *uncounted_of(setup, gpu))))
    trains = METHODS[setup.method].trains != "nothing"
    for method in dict.fromkeys((*methods, setup.method)) if trains else (setup.method,):
        try:
            this = under(setup, method)
            with telling(method):
                entry, predictions[method] = _method(name, config, this, gpu, error, missing)
        except UsageError as problem:
            if method == setup.method:
                raise
            entry = MethodFit(method, None, error=str(problem))
        found.append(entry)
    able = [entry for entry in found if entry.error is None]
    candidates = {
        each.method: Candidate(each.method, each.holds, each.device_bytes, each.checkpoint_bytes, None)
        for each in able
    }
    decision = decide(candidates, **preferences) if trains else held(able[0])
    if missing and decision.method is not None:
        decision = bounded(decision, candidates, missing)
    chosen = next((entry for entry in able if entry.method == decision.method), None)
    return Fit(
        model=name,
        gpu=gpu,
        setup=setup,
        methods=tuple(found),
        changes=(),
        waterfall=(),
        decision=decision,
        cards=_cards(predictions[setup.method], error, not_modelled),
        chosen_cards=_cards(predictions[chosen.method], error, not_modelled)
        if chosen and chosen.method != setup.method
        else None,
        error=error,
        chosen=chosen,
        not_modelled=missing,
        parts=None if missing else parts(predictions[setup.method], gpu),
        engine="trace",
    )


def _method(
    name: str,
    config: Mapping[str, Any],
    setup: Setup,
    gpu: Gpu,
    error: float,
    missing: tuple[str, ...],
) -> tuple[MethodFit, Prediction]:
    compiled = Compiled(config, setup)
    batch, sequence = setup.micro_batch, setup.sequence_length
    asked = compiled.at((batch, sequence), name)
    need = _widened(need_of(asked), error)

    def fits(point: Point) -> bool:
        tell(f"does {point[0]:,} x {point[1]:,} tokens fit?")
        return _need(compiled, point, error).fits(gpu)

    positions = config.get("max_position_embeddings")
    most = positions if isinstance(positions, int) and positions > 0 else LONGEST
    longest = _longest(lambda tokens: fits((batch, tokens)), sequence, most)
    word = need.word(gpu)
    entry = MethodFit(
        setup.method,
        setup,
        need.device_bytes(gpu),
        withheld(word, missing),
        boundary(lambda rows: fits((rows, sequence)), MOST_BATCH),
        longest,
        (),
        (),
        asked.trainable_parameters,
        asked.checkpoint_bytes,
        holds=word == "fits",
    )
    return entry, asked


def _widened(need: Need, error: float) -> Need:
    """What a run needs, with room for the recorded worst error where that is more than its own margin."""
    return replace(need, margin=max(need.margin, error))


def _need(compiled: Compiled, point: Point, error: float) -> Need:
    """What a run at these sizes reserves, by one replay."""
    log, _ = compiled.log(point, solve=True)
    setup = compiled.setup
    ties = TORCH_VERSIONS[setup.torch].equal_blocks
    run = replay(log.events, mode=setup.allocator, ties=ties, streams=log.streams)
    return _widened(Need(max(run.allocated), max(run.reserved), margin_of("trace", setup)), error)


def _longest(holds: Callable[[int], bool], near: int, most: int) -> int | None:
    """The longest sequence, a multiple of STEP or the length asked for, that holds: doubled or halved from
    `near`, then bisected.
    """
    low, high = (near, None) if holds(near) else (None, near)
    while high is None and low is not None:
        following = min(2 * (low // STEP * STEP or STEP), most // STEP * STEP)
        if following <= low:
            return low
        low, high = (following, None) if holds(following) else (low, following)
    while low is None and high is not None:
        following = high // 2 // STEP * STEP
        if following < STEP:
            return None
        low, high = (following, high) if holds(following) else (None, following)
    assert low is not None and high is not None
    while True:
        middle = (low + high) // 2 // STEP * STEP
        if not low < middle < high:
            return low
        low, high = (middle, high) if holds(middle) else (low, middle)


def _cards(prediction: Prediction, error: float, missing: Sequence[str]) -> CardChoice:
    """The common GPUs that hold a prediction, of those with the kernels that were traced."""
    need = _widened(need_of(prediction), error)
    holding = [
        gpu
        for gpu in sorted(common_gpus(), key=lambda gpu: gpu.usable_bytes)
        if not older(gpu) and need.word(gpu) == "fits"
    ]
    return choice(holding, need, prediction.setup, missing)
