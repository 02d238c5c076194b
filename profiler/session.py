"""One build and its real training steps on a device, watched: counters, marks and claims at every moment,
kept even where a step fails.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.errors import UsageError
from memplan.profiler.evidence import Evidence, completed, failure_of
from memplan.profiler.history import LOADED, Attribution, History, mark_label
from memplan.profiler.nvml import ALL, Usage, look, of_this_process
from memplan.profiler.record import Failure

WARM_UP = 2
INSTRUMENTED = WARM_UP
"""The step whose allocations and frees are kept: optimizer states exist, every workspace has been made."""


@dataclass
class Session:
    """One build and its steps, filled as it proceeds, so that what was reached survives an out-of-memory
    error.
    """

    config: dict[str, Any]
    setup: Setup
    device: str
    timed: int
    snapshot: Path | None = None
    before: Usage = field(default_factory=Usage)  # the GPU before this process touched it
    dry: bool = False  # over stub libraries: no context, no times
    model: dict[str, Any] = field(default_factory=dict)
    recorder: Any = None
    trainable: int | None = None
    total: int | None = None
    failure: Failure | None = None
    retries: int | None = None
    device_bytes: int | None = None
    device_source: str | None = None
    context_bytes: int | None = None
    flops: int | None = None
    seconds: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counters: list[tuple[int, str, dict[str, int]]] = field(
        default_factory=list
    )  # step, moment, the device's counters at its end
    claims: list[Attribution] = field(default_factory=list)
    history: History = field(default_factory=History)
    moment: str = "load_peak"

    def run(self) -> None:
        """Build, take the warm-up, instrumented and timed steps, and keep what the allocator says of each."""
        from memplan.profiler.recorders import RECORDERS

        self.recorder = RECORDERS[self.device]()
        self.recorder.reset_peaks()
        self.recorder.start()
        try:
            self._steps()
        except UsageError:
            raise
        except (
            Exception
        ) as error:  # a real library's error is this case's outcome; its frames still hold what was allocated
            counters = self._counters_now()
            self._stop_safely()
            self.failure = completed(failure_of(error, self.moment), self.history, counters)
        self._stop_safely()
        if self.retries is None:
            self._ended(self._counters_now())

    def _ended(self, counters: Mapping[str, int] | None) -> None:
        """What the counters and the device say of the whole run, before anything else is asked of it."""
        if counters is not None:
            self.retries = counters["retries"]
            self._device(counters)

    def _stop_safely(self) -> None:
        """After an error the device may answer nothing any more; what is known without it is kept."""
        try:
            self._stop()
        except UsageError:
            raise
        except Exception as error:
            self.warnings.append(
                f"the allocator's history is lost: {type(error).__name__}: {str(error)[:160]}"
            )

    def _counters_now(self) -> dict[str, int] | None:
        """The device's counters; None where it has none, or where an error has left it unusable."""
        try:
            found: dict[str, int] | None = self.recorder.counters()
        except RuntimeError as error:
            self.warnings.append(f"the device cannot be asked any more: {str(error)[:160]}")
            return None
        return found

    def _steps(self) -> None:
        from memplan.planner.run import evaluation
        from memplan.planner.run import step as loop
        from memplan.planner.run.build import build
        from memplan.profiler.attribution import after_moment, loaded, saved_tensors

        built = build(self.config, self.setup, self.device)
        self._counts(built)
        gc.collect()
        self._note(-1, "load")
        self.recorder.mark(LOADED)
        self.claims += loaded(built)
        watcher = Watcher(self, after_moment(built))
        for index in range(INSTRUMENTED):
            loop.run(built, watcher, index)
        with saved_tensors(self._saved):
            loop.run(built, watcher, INSTRUMENTED)
        evaluation.run(built, watcher, INSTRUMENTED)
        self._stop()
        for index in range(WARM_UP + 1, WARM_UP + 1 + self.timed):
            self.recorder.synchronise()
            start = time.perf_counter()
            loop.run(built, watcher, index)
            self.recorder.synchronise()
            self.seconds.append(time.perf_counter() - start)
        self.moment = "counting"
        self._ended(self.recorder.counters())
        self._count_flops(built)

    def _stop(self) -> None:
        """End the history, once; a snapshot for torch's own viewer is written while it still holds the
        events.
        """
        if self.history.events or self.history.marks:
            return
        if self.snapshot is not None and self.device == "cuda":
            write_snapshot(self.snapshot)
        self.history = self.recorder.stop()
        self.history.claims = self.claims

    def _saved(self, address: int) -> None:
        """A storage that autograd saves: once per address and block is enough, claims of weights come
        first.
        """
        label = f"saved {len(self.claims)}"
        self.recorder.mark(label)
        self.claims.append(Attribution(label, address, "activations"))

    def _counts(self, built: Any) -> None:
        from memplan.planner.run.built import logical_numel

        self.model = {"architecture": type(built.base).__name__, "parameters": built.parameters}
        self.trainable = sum(logical_numel(p) for p in built.trainable)
        self.total = sum(logical_numel(p) for p in built.model.parameters())

    def _note(self, step: int, moment: str) -> None:
        counters = self.recorder.counters()
        if counters is not None:
            self.counters.append((step, moment, counters))

    def _device(self, counters: Mapping[str, int]) -> None:
        """Device bytes as seen from outside, and the context: what the device lost beyond what this process
        reserved.
        """
        import torch

        if self.device != "cuda" or self.dry or self.context_bytes is not None:
            return
        try:
            free, total = torch.cuda.mem_get_info()
        except RuntimeError:  # an error has left the device unusable, which `_counters_now` has said
            return
        found = of_this_process(self.before, look(), os.getpid(), free, total)
        self.device_bytes = None if found.source == ALL else found.nbytes
        self.device_source = found.source
        if found.note:
            self.warnings.append(found.note)
        self.context_bytes = max(0, found.nbytes - counters["reserved"])

    def _count_flops(self, built: Any) -> None:
        """One more step under torch's FLOP counter (recomputation included); kernels that it has no formula
        for are not counted.
        """
        from memplan.planner.run import step as loop
        from memplan.profiler.flops import counted

        try:
            self.flops = counted(lambda: loop.run(built, Silent(), WARM_UP + 1 + self.timed))
        except Exception as error:
            self.warnings.append(f"FLOP were not counted: {type(error).__name__}: {str(error)[:160]}")

    def extra(self) -> dict[str, Any]:
        """What a record keeps of a GPU beyond the contract: who told its device bytes."""
        return {"device_bytes_source": self.device_source} if self.device_source else {}

    def evidence(self) -> Evidence:
        """What was recorded, to be read without a device."""
        return Evidence(
            self.device, self.setup, self.history, self.counters, self.context_bytes, INSTRUMENTED
        )


@dataclass
class Watcher:
    """What the step announces its moments to: resets and reads the counters, marks the history, claims what
    each moment leaves.
    """

    session: Session
    claim: Callable[[str, str], list[Attribution]]
    seen: dict[tuple[int, str], int] = field(default_factory=dict)

    @contextlib.contextmanager
    def announce(self, moment: str, step: int = -1) -> Iterator[None]:
        """Record an interval of the step: its peak, its counters and its place in the history."""
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


class Silent:
    """The announcer of the step that only counts operations."""

    def announce(self, moment: str, step: int = -1) -> contextlib.AbstractContextManager[None]:
        """Nothing: this step is only timed."""
        return contextlib.nullcontext()


def write_snapshot(path: Path) -> None:
    """Write torch's memory snapshot for its viewer. Raises UsageError where the file cannot be written."""
    import torch

    try:
        torch.cuda.memory._dump_snapshot(str(path))
    except OSError as error:
        raise UsageError(f"cannot write the snapshot {path}: {error.strerror or error}") from None
