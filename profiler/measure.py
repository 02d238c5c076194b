"""profile(config, setup): real training steps, the same build and step as the trace engine, measured per
moment and component.

Weights are random and made on the device, so nothing is downloaded. The allocator's history is on from before
the build to the end of the instrumented step (the first after the warm-up); the measured steps after it,
without history, give the times. Every moment's peak is read from the allocator's own counters (CUDA) or
events (CPU).
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.torch_versions import nearest
from memplan.planner.tables.units import gib
from memplan.profiler.align import Step
from memplan.profiler.environment import describe, require, require_device, set_allocator
from memplan.profiler.evidence import measured_moments
from memplan.profiler.files import write_gzip
from memplan.profiler.nvml import Usage, look
from memplan.profiler.record import Failure, Measurement, Outcome, is_dry
from memplan.profiler.session import Session

T = TypeVar("T")
DRY = (
    "a dry run over stub libraries, not a GPU measurement: times, the CUDA context and what CUDA's libraries "
    "allocate inside themselves are unknown"
)


def _outcome(failure: Failure | None) -> Outcome:
    if failure is None:
        return "ok"
    return "oom" if failure.kind == "oom" else "error"


def _speed(session: Session, setup: Setup) -> dict[str, Any]:
    """Tokens and FLOP per second over the timed steps; None where no step was timed."""
    timed = session.seconds if not session.dry else []
    mean = sum(timed) / len(timed) if timed else None
    tokens = setup.micro_batch * setup.sequence_length * setup.gradient_accumulation
    return {
        "tokens_per_second": round(tokens / mean, 3) if mean else None,
        "flops_per_second": round(session.flops / mean) if mean and session.flops else None,
    }


def profile(
    config: Mapping[str, Any],
    setup: Setup,
    *,
    device: Literal["cuda", "cpu"] | None = None,
    steps: int = 3,
    cap: int | None = None,
    snapshot: Path | None = None,
    name: str = "model",
    case: str | None = None,
    predicted: Step | None = None,
    history: Path | None = None,
) -> Measurement:
    """Run real training steps of `config` under `setup` in this process and say what they needed.

    The process is spent afterwards: a GPU's context and cap stay. `memplan.profiler.isolate` gives each run a
    process of its own.

    `cap` limits the CUDA allocator to so many bytes (the context comes on top), `steps` are timed after the
    warm-up, `snapshot` is where torch's memory snapshot goes, `predicted` the trace's events of a steady
    step, to be aligned with the real ones, `history` where the allocator's events are kept (JSON, gzip). Out
    of memory is an outcome of the Measurement. Raises UsageError for a missing library or device, or a setup
    that a library rejects.
    """
    device = device or setup.device
    require(("torch", "transformers", "accelerate"))
    if setup.gpus > 1:
        raise UsageError(
            f"profiling runs on one device, the setup has gpus {setup.gpus}: profile one rank's share, or "
            "plan"
        )
    started = time.perf_counter()
    before = Usage()
    if device == "cuda":
        before = look()
        set_allocator(setup.allocator)
    require_device(device)
    environment = describe(device)
    _limit(cap, environment, device)
    own = setup if setup.device == device else setup.replaced(device=device)
    own = own.with_(torch=nearest(str(environment["versions"]["torch"])))
    dry = is_dry(environment)
    session = Session(dict(config), own, device, steps, snapshot, before, dry=dry)
    if dry:
        session.warnings.append(DRY)
    mode = (environment["allocator"] or {}).get("mode")
    if mode not in (None, setup.allocator):
        session.warnings.append(f"the allocator runs in {mode} mode, the setup asked for {setup.allocator}")
    session.run()
    notes: list[str] = []
    if history is not None:
        _kept(
            "the allocator's history could not be kept",
            lambda: write_gzip(history, session.history.to_document()),
            notes,
        )
    evidence = session.evidence()
    found = _kept("components were not read", lambda: measured_moments(evidence), notes)
    moments, peak, step_peak, said = found or measured_moments(evidence.without_history())
    alignment = _kept("the history was not aligned", lambda: evidence.alignment(predicted), notes)
    return Measurement(
        case=case or f"{name} {setup.method}",
        model={"name": name, "config": dict(config), **session.model},
        setup=session.setup,
        environment=environment,
        outcome=_outcome(session.failure),
        steps=steps,
        cap_bytes=cap,
        failure=session.failure,
        peak=peak,
        step_peak=step_peak,
        moments=moments,
        trainable_parameters=session.trainable,
        total_parameters=session.total,
        retries=session.retries,
        device_bytes=session.device_bytes,
        step_seconds=tuple(round(s, 6) for s in session.seconds) if not dry else (),
        **_speed(session, setup),
        alignment=alignment,
        wall_seconds=round(time.perf_counter() - started, 3),
        warnings=(*session.warnings, *said, *notes),
        extra={**evidence.extra(), **session.extra()},
    )


def _kept(what: str, call: Callable[[], T], notes: list[str]) -> T | None:
    """The result; None and a note where it cannot be had: what was measured is kept whatever the evaluation
    makes of it.
    """
    try:
        return call()
    except Exception as error:
        traceback.print_exc()
        notes.append(f"{what}: {type(error).__name__}: {str(error)[:160]}")
        return None


def _limit(cap: int | None, environment: Mapping[str, Any], device: str) -> None:
    if cap is None:
        return
    if device == "cpu":
        raise UsageError("--cap limits the CUDA allocator: the CPU's has no such limit")
    import torch

    total = int(environment["total_bytes"])
    if cap > total:
        raise UsageError(f"a cap of {gib(cap)} is more than the {gib(total)} of this {environment['gpu']}")
    torch.cuda.set_per_process_memory_fraction(fraction_of(cap, total))


def fraction_of(cap: int, total: int) -> float:
    """The smallest fraction of `total` bytes that allows `cap`: the allocator multiplies and cuts off the
    rest (setMemoryFraction).
    """
    fraction = cap / total
    while int(fraction * total) < cap:
        fraction = math.nextafter(fraction, 2.0)
    return min(1.0, fraction)
