"""trace(config, setup): two training steps of the real libraries on meta tensors, replayed through the
allocator.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from memplan.planner.formula.assumptions import assumptions, warnings
from memplan.planner.inputs import fused_kernels, mixer_kernels
from memplan.planner.inputs.families.table import read_config
from memplan.planner.inputs.picture_sizes import has_tower
from memplan.planner.inputs.pictures import said_of, uncounted
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.prediction import ModelSummary, Prediction
from memplan.planner.run.extras import require
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import find_gpu
from memplan.planner.tables.progress import tell

if TYPE_CHECKING:
    from memplan.planner.trace.events.log import Log
    from memplan.planner.trace.events.record import Facts


def trace(config: Mapping[str, Any], setup: Setup, name: str = "model", *, full: bool = False) -> Prediction:
    """Predict by running the real libraries on meta tensors.

    `full` runs every layer instead of synthesizing equal ones, and every micro-step of gradient accumulation
    instead of two (the same prediction, slower: what the tests compare with). Raises UsageError where a
    library rejects config, adapter or method, or is not installed.
    """
    return traced(config, setup, name, full=full)[0]


def traced(
    config: Mapping[str, Any], setup: Setup, name: str = "model", *, full: bool = False
) -> tuple[Prediction, Log]:
    """`trace`, with the events that the prediction was made from."""
    require()
    with _collecting_young_only():
        log, facts = recorded(config, setup, full=full)
        return predicted(config, setup, log, facts, name), log


def recorded(
    config: Mapping[str, Any], setup: Setup, *, full: bool = False, calls: bool = False
) -> tuple[Log, Facts]:
    """The events of two training steps, and the model's counts. `calls`: with the calls of kernels whose
    workspaces depend on sizes, as storages of no bytes.
    """
    require()
    tell("loading torch and transformers")
    from memplan.planner.trace.calls import CallObserver
    from memplan.planner.trace.device.target import target_of
    from memplan.planner.trace.events.record import record
    from memplan.planner.trace.observe import Observer

    with _collecting_young_only():
        observer = CallObserver if calls else Observer
        return record(config, setup, target_of(setup), full=full, kind=observer)


@contextmanager
def _collecting_young_only() -> Iterator[None]:
    """The garbage collector leaves alone what is there already: torch and transformers are a million objects,
    which it would walk again and again (a tenth of a trace's time).
    """
    frozen_by_others = gc.get_freeze_count()
    if not frozen_by_others:
        gc.freeze()
    try:
        yield
    finally:
        if not frozen_by_others:
            gc.unfreeze()


def predicted(config: Mapping[str, Any], setup: Setup, log: Log, facts: Facts, name: str) -> Prediction:
    """The prediction that a run's events make: replayed through the setup's allocator."""
    from memplan.planner.trace.device.target import target_of
    from memplan.planner.trace.events.load_orders import bands
    from memplan.planner.trace.events.timeline import Timeline, alive_after
    from memplan.planner.trace.events.unseen import unseen
    from memplan.planner.trace.kernels import Kernels, UnknownBytes

    target, spec, model_type = target_of(setup), _spec(config), str(config.get("model_type"))
    tell(f"replaying {len(log.events):,} events of the allocator")
    timeline = Timeline(log, setup, target)
    moments, peak, step_peak = timeline.moments()
    band = bands(log, setup, timeline.replay) if target.device == "cuda" else None
    share, unknown = UnknownBytes(Kernels(target)).share(
        (s.op, s.nbytes) for s in alive_after(log, timeline.replay.peaks().index)
    )
    library = unseen(log, setup, timeline.replay) if target.device == "cuda" else None
    beside = (library.said(),) if library is not None else ()
    open_ended = library is not None and library.moves_peak
    tell("looking for the smallest capacity that survives")
    smallest = timeline.smallest_capacity()
    usable = find_gpu(setup.gpu).usable_bytes if setup.gpu else None
    expandable = (
        timeline.expandable_capacity(usable)
        if usable is not None and smallest is not None and smallest > usable
        else None
    )
    return Prediction(
        engine="trace",
        model=ModelSummary(name, facts.architecture, facts.parameters),
        setup=setup,
        trainable_parameters=facts.trainable,
        total_parameters=facts.total,
        checkpoint_bytes=facts.checkpoint_bytes,
        peak=peak,
        step_peak=step_peak,
        moments=moments,
        host_bytes=facts.host_bytes,
        smallest_capacity_bytes=smallest,
        assumptions=(
            *filter(None, (said_of(config, setup),)),
            *mixer_kernels.said(model_type, setup),
            *assumptions(spec, setup),
            *(() if open_ended else beside),
        ),
        not_modelled=(
            *uncounted(config, setup),
            *fused_kernels.uncounted(model_type, setup),
            *mixer_kernels.uncounted(model_type, setup),
            *(beside if open_ended else ()),
        ),
        warnings=(*facts.warnings, *warnings(spec, setup, model_type)),
        extra={
            "timeline": timeline.points(),
            "traced_layers": facts.traced_layers,
            "unknown_share": share,
            "unknown_ops": [{"op": op, "bytes": nbytes} for op, nbytes in unknown],
            **({"bands": band} if band else {}),
            **({"library": library.to_document()} if library is not None else {}),
            **({"save_host_bytes": facts.checkpoint_bytes} if setup.save else {}),
            **({"expandable_capacity_bytes": expandable} if expandable else {}),
        },
    )


def _spec(config: Mapping[str, Any]) -> ModelSpec | None:
    """What the formula's reader knows of the model: the words about it; None for a family that it lacks, or
    whose other parts it leaves out.
    """
    if has_tower(config):
        return None
    try:
        return read_config(dict(config))
    except UsageError:
        return None
