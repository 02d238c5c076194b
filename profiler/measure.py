"""profile(config, setup): real training steps, the same build and step as the trace engine, measured per moment and component.

Weights are random and made on the device, so nothing is downloaded. The allocator's history is on from before the build to the end of the
instrumented step (the first after the warm-up); the measured steps after it, without history, give the times. Every moment's peak is read
from the allocator's own counters (CUDA) or events (CPU).
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from planner.errors import UsageError
from planner.setup import Setup
from planner.units import gib
from profiler.align import Step
from profiler.environment import describe, device_bytes, require, require_device, set_allocator
from profiler.evidence import Evidence, completed, failure_of, measured_moments
from profiler.files import write_gzip
from profiler.history import LOADED, Claim, History, mark_label
from profiler.record import Failure, Measurement

WARM_UP = 2
INSTRUMENTED = WARM_UP
"""The step whose allocations and frees are kept: optimizer states exist, every workspace has been made."""


def profile(config: Mapping[str, Any], setup: Setup, *, device: Literal["cuda", "cpu"] | None = None, steps: int = 3,
            cap: int | None = None, snapshot: Path | None = None, name: str = "model", case: str | None = None,
            predicted: Step | None = None, history: Path | None = None) -> Measurement:  # fmt: skip
    """Run real training steps of `config` under `setup` in this process and say what they needed.

    The process is spent afterwards: a GPU's context and cap stay. `profiler.isolate` gives each run a process of its own.

    `cap` limits the CUDA allocator to so many bytes (the context comes on top), `steps` are timed after the warm-up, `snapshot` is where
    torch's memory snapshot goes, `predicted` the trace's events of a steady step, to be aligned with the real ones, `history` where the
    allocator's events are kept (JSON, gzip). Out of memory is an outcome of the Measurement. Raises UsageError for a missing library or
    device, or a setup that a library rejects.
    """
    device = device or setup.device
    require(("torch", "transformers", "accelerate"))
    if setup.gpus > 1:
        raise UsageError(f"profiling runs on one device, the setup has gpus {setup.gpus}: profile one rank's share, or plan")
    started = time.perf_counter()
    if device == "cuda":
        set_allocator(setup.allocator)
    require_device(device)
    environment = describe(device)
    _limit(cap, environment, device)
    session = _Session(dict(config), setup if setup.device == device else setup.replaced(device=device), device, steps, snapshot)
    mode = (environment["allocator"] or {}).get("mode")
    if mode not in (None, setup.allocator):
        session.warnings.append(f"the allocator runs in {mode} mode, the setup asked for {setup.allocator}")
    session.run()
    if history is not None:
        write_gzip(history, session.history.to_document())
    evidence = session.evidence()
    moments, peak, step_peak, notes = measured_moments(evidence)
    mean = sum(session.seconds) / len(session.seconds) if session.seconds else None
    tokens = setup.micro_batch * setup.sequence_length * setup.gradient_accumulation
    return Measurement(
        case=case or f"{name} {setup.method}",
        model={"name": name, "config": dict(config), **session.model},
        setup=session.setup,
        environment=environment,
        outcome="ok" if session.failure is None else "oom" if session.failure.kind == "oom" else "error",
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
        step_seconds=tuple(round(s, 6) for s in session.seconds),
        tokens_per_second=round(tokens / mean, 3) if mean else None,
        flops_per_second=round(session.flops / mean) if mean and session.flops else None,
        alignment=evidence.alignment(predicted),
        wall_seconds=round(time.perf_counter() - started, 3),
        warnings=tuple(session.warnings) + tuple(notes),
        extra=evidence.extra(),
    )


def _limit(cap: int | None, environment: Mapping[str, Any], device: str) -> None:
    if cap is None:
        return
    if device == "cpu":
        raise UsageError("--cap limits the CUDA allocator: the CPU's has no such limit")
    import torch

    total = int(environment["total_bytes"])
    if cap > total:
        raise UsageError(f"a cap of {gib(cap)} is more than the {gib(total)} of this {environment['gpu']}")
    torch.cuda.set_per_process_memory_fraction(cap / total)


@dataclass
class _Session:
    """One build and its steps, filled as it proceeds, so that what was reached survives an out-of-memory error."""

    config: dict[str, Any]
    setup: Setup
    device: str
    timed: int
    snapshot: Path | None = None
    model: dict[str, Any] = field(default_factory=dict)
    recorder: Any = None
    trainable: int | None = None
    total: int | None = None
    failure: Failure | None = None
    retries: int | None = None
    device_bytes: int | None = None
    context_bytes: int | None = None
    flops: int | None = None
    seconds: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counters: list[tuple[int, str, dict[str, int]]] = field(default_factory=list)  # step, moment, the device's counters at its end
    claims: list[Claim] = field(default_factory=list)
    history: History = field(default_factory=History)
    moment: str = "load_peak"

    def run(self) -> None:
        from profiler.recorders import RECORDERS

        self.recorder = RECORDERS[self.device]()
        self.recorder.reset_peaks()
        self.recorder.start()
        try:
            self._steps()
        except UsageError:
            raise
        except Exception as error:  # a real library's error is this case's outcome; its frames still hold what was allocated
            counters = self._counters_now()
            self._stop()
            self.failure = completed(failure_of(error, self.moment), self.history, counters)
        self._stop()
        counters = self._counters_now()
        if counters is not None:
            self.retries = counters["retries"]
            self._device(counters)

    def _counters_now(self) -> dict[str, int] | None:
        """The device's counters; None where it has none, or where an error has left it unusable."""
        try:
            found: dict[str, int] | None = self.recorder.counters()
        except RuntimeError as error:
            self.warnings.append(f"the device cannot be asked any more: {str(error)[:160]}")
            return None
        return found

    def _steps(self) -> None:
        from planner.live import step as loop
        from planner.live.attention import on_device
        from planner.live.build import build
        from profiler.claims_of import after_moment, loaded
        from profiler.saved import saved_tensors

        built = build(self.config, self.setup, self.device)
        self._counts(built)
        gc.collect()
        self._note(-1, "load")
        self.recorder.mark(LOADED)
        self.claims += loaded(built)
        watcher = _Watcher(self, after_moment(built))
        with on_device(self.setup.attention):
            for index in range(INSTRUMENTED):
                loop.run(built, watcher, index)
            with saved_tensors(self._saved):
                loop.run(built, watcher, INSTRUMENTED)
            self._stop()
            for index in range(WARM_UP + 1, WARM_UP + 1 + self.timed):
                self.recorder.synchronise()
                start = time.perf_counter()
                loop.run(built, watcher, index)
                self.recorder.synchronise()
                self.seconds.append(time.perf_counter() - start)
            self.moment = "counting"
            counters = self.recorder.counters()
            if counters is not None:
                self._device(counters)
            self._count_flops(built)

    def _stop(self) -> None:
        """End the history, once; a snapshot for torch's own viewer is written while it still holds the events."""
        if self.history.events or self.history.marks:
            return
        if self.snapshot is not None and self.device == "cuda":
            _write_snapshot(self.snapshot)
        self.history = self.recorder.stop()
        self.history.claims = self.claims

    def _saved(self, address: int) -> None:
        """A storage that autograd saves: once per address and block is enough, claims of weights come first."""
        label = f"saved {len(self.claims)}"
        self.recorder.mark(label)
        self.claims.append(Claim(label, address, "activations"))

    def _counts(self, built: Any) -> None:
        from planner.live.build import logical_numel

        self.model = {"architecture": type(built.base).__name__, "parameters": built.parameters}
        self.trainable = sum(logical_numel(p) for p in built.trainable)
        self.total = sum(logical_numel(p) for p in built.model.parameters())

    def _note(self, step: int, moment: str) -> None:
        counters = self.recorder.counters()
        if counters is not None:
            self.counters.append((step, moment, counters))

    def _device(self, counters: Mapping[str, int]) -> None:
        """Device bytes as NVML charges them, and the context: what the device lost beyond what this process reserved."""
        import torch

        if self.device != "cuda" or self.context_bytes is not None:
            return
        self.device_bytes = device_bytes()
        free, total = torch.cuda.mem_get_info()
        used = self.device_bytes if self.device_bytes is not None else total - free
        if self.device_bytes is None:
            self.warnings.append("NVML does not tell this process's bytes: the context assumes that no other process uses the GPU")
        self.context_bytes = max(0, used - counters["reserved"])

    def _count_flops(self, built: Any) -> None:
        """One more step under torch's FLOP counter (recomputation included); kernels that it has no formula for are not counted."""
        from planner.live import step as loop
        from profiler.flops import counted

        try:
            self.flops = counted(lambda: loop.run(built, _Silent(), WARM_UP + 1 + self.timed))
        except Exception as error:
            self.warnings.append(f"FLOP were not counted: {type(error).__name__}: {str(error)[:160]}")

    def evidence(self) -> Evidence:
        return Evidence(self.device, self.setup, self.history, self.counters, self.context_bytes, INSTRUMENTED)


@dataclass
class _Watcher:
    """What the step announces its moments to: resets and reads the counters, marks the history, claims what each moment leaves."""

    session: _Session
    claim: Callable[[str, str], list[Claim]]
    seen: dict[tuple[int, str], int] = field(default_factory=dict)

    @contextlib.contextmanager
    def announce(self, moment: str, step: int = -1) -> Iterator[None]:
        session, repeat = self.session, self.seen.get((step, moment), 0)
        self.seen[step, moment] = repeat + 1
        session.moment = moment
        session.recorder.reset_peaks()
        session.recorder.mark(mark_label(step, moment, repeat, "begin"))
        yield
        label = mark_label(step, moment, repeat, "end")
        session.recorder.mark(label)
        session._note(step, moment)
        if step <= INSTRUMENTED:
            session.claims += self.claim(moment, label)


class _Silent:
    """The announcer of the step that only counts operations."""

    def announce(self, moment: str, step: int = -1) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def _write_snapshot(path: Path) -> None:
    import torch

    try:
        torch.cuda.memory._dump_snapshot(str(path))
    except OSError as error:
        raise UsageError(f"cannot write the snapshot {path}: {error.strerror or error}") from None
