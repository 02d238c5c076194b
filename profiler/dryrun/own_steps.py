"""memplan's own build and training steps on torch's CUDA build over the stub libraries: a dry run of what the
trace predicts.

`DryRunner` forks one process a run from one that has imported the libraries (`memplan.profiler.isolate`);
`observed` is what runs there.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.components import EVALUATION
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu, find_gpu
from memplan.planner.tables.torch_versions import nearest
from memplan.profiler.align import Step, measured_step
from memplan.profiler.dryrun.build import preload, stub_libraries
from memplan.profiler.dryrun.cards import card_environment
from memplan.profiler.dryrun.interpreter import Interpreter, find_interpreter
from memplan.profiler.dryrun.launch import INSIDE, stub_environment
from memplan.profiler.dryrun.rehearse import kernels_for
from memplan.profiler.history import ALLOC, FREE, LOADED, History, blocks_of, components_at, mark_label, own
from memplan.profiler.isolate import Isolation

STEPS = 2
"""As many as the trace runs: optimizer states appear in the first, the second is the steady one."""
NO_CUDNN = (9, 0)
"""From this compute capability on torch prefers cuDNN attention, whose plans the stub cannot build: switched
off, as in `memplan dry-run`.
"""


@dataclass(frozen=True, slots=True)
class DryStep:
    """What one dry run saw, in bytes. `moments`: the largest allocated of each moment of the steady step (and
    after loading), `components` at the steady step's peak, `events` of the whole run as (kind, bytes), `step`
    those of the steady step by moment.
    """

    allocated: int
    reserved: int
    step_allocated: int
    step_reserved: int
    moments: Mapping[str, int]
    components: Mapping[str, int]
    retries: int
    oom: str
    events: tuple[tuple[str, int, int], ...]
    marks: tuple[tuple[str, int], ...]
    lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def history(self) -> History:
        """The allocator's history: blocks by address."""
        from memplan.profiler.history import Event, Mark

        return History(
            events=[Event(kind, address, nbytes) for kind, address, nbytes in self.events],
            marks=[Mark(label, position) for label, position in self.marks],
        )

    def step(self) -> Step:
        """The steady step's events by moment, as the alignment reads them."""
        return measured_step(self.history, STEPS - 1)


class DryRunner:
    """Runs setups over the stub libraries of one interpreter. Use as a context manager."""

    def __init__(self, python: str) -> None:
        self.interpreter: Interpreter = find_interpreter(python)
        found = self.interpreter
        self._folder = stub_libraries(found.path, found.sites, found.torch, found.cuda)
        self.release = nearest(found.torch)
        around = {
            **stub_environment(preload(self._folder)),
            "PYTHONPATH": str(INSIDE),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self._isolation = Isolation(environment=around, python=found.path)

    def __enter__(self) -> DryRunner:
        self._isolation.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._isolation.close()

    def run(self, config: Mapping[str, Any], setup: Setup, **options: Any) -> DryStep:
        """`start`, with its options, and `result`."""
        self.start(config, setup, **options)
        return self.result()

    def start(
        self,
        config: Mapping[str, Any],
        setup: Setup,
        *,
        capacity: int | None = None,
        stacks: bool = False,
        deadline: float = 600.0,
    ) -> None:
        """Build and `STEPS` steps on the setup's GPU, whose memory does not run out; with `capacity`, on one
        that lends torch so many bytes. `result` waits for them.
        """
        self._isolation.submit(
            "memplan.profiler.dryrun.own_steps:observed",
            {"config": dict(config), "fields": setup.to_document(), "stacks": stacks},
            deadline=deadline,
            environment=self._card(find_gpu(setup.gpu) if setup.gpu else None, capacity),
        )

    def result(self) -> DryStep:
        """What the run that was started saw. UsageError where a library refuses the setup or the process ends
        without an answer.
        """
        report = self._isolation.wait()
        assert report is not None, "no deadline was given"
        if report.outcome != "ok":
            raise UsageError(f"dry run {report.outcome}: {report.message}")
        return _read(report.result)

    def _card(self, gpu: Gpu | None, capacity: int | None) -> dict[str, str]:
        kernels = kernels_for(gpu, self.interpreter, self._folder)
        variables = card_environment(gpu, 1, kernels, bounded=False)
        if capacity is not None:
            variables |= {"MEMPLAN_STUB_TOTAL_BYTES": str(capacity), "MEMPLAN_STUB_CONTEXT_BYTES": "0"}
        return variables


def _read(document: Mapping[str, Any]) -> DryStep:
    fields: dict[str, Any] = dict(document)
    for key in ("events", "marks", "lines", "notes"):
        fields[key] = tuple(tuple(row) if isinstance(row, list) else row for row in fields[key])
    return DryStep(**fields)


# ---- in the process over the stub libraries ----------------------------------------------------------------


def observed(config: dict[str, Any], fields: dict[str, Any], stacks: bool = False) -> dict[str, Any]:
    """Build and `STEPS` steps of the setup with these fields, as a DryStep's document."""
    import torch
    from memplan_inside import values  # type: ignore[import-not-found]  # on the interpreter's path there

    from memplan.planner.inputs.setup import checked
    from memplan.profiler.environment import set_allocator

    setup = checked({**fields, "adapter": fields["adapter"]}, {})
    values.install()
    set_allocator(setup.allocator)
    if torch.cuda.get_device_capability() >= NO_CUDNN:
        torch.backends.cuda.enable_cudnn_sdp(False)
    watch = _Watch(stacks)
    try:
        watch.steps(config, setup)
    except torch.OutOfMemoryError as error:
        watch.oom = str(error)
    return {**watch.document(), "notes": sorted(values.notes)}


@dataclass
class _Watch:
    """The announcer of the steps: counters at each moment's end, marks in the allocator's history."""

    stacks: bool
    oom: str = ""
    counters: list[tuple[int, str, dict[str, int]]] = field(default_factory=list)
    repeats: dict[tuple[int, str], int] = field(default_factory=dict)

    def steps(self, config: dict[str, Any], setup: Setup) -> None:
        from memplan.planner.run import evaluation
        from memplan.planner.run import step as loop
        from memplan.planner.run.build import build
        from memplan.profiler.attribution import after_moment, loaded
        from memplan.profiler.recorders import CudaRecorder

        self.recorder = CudaRecorder(stacks=self.stacks)
        self.recorder.start()
        self.recorder.reset_peaks()
        self.claims: list[Any] = []
        built = build(config, setup, "cuda")
        gc.collect()
        self._note(-1, "load")
        self.recorder.mark(LOADED)
        self.claims += loaded(built)
        self.claim = after_moment(built)
        for index in range(STEPS):
            loop.run(built, self, index)
        evaluation.run(built, self, STEPS - 1)

    @contextlib.contextmanager
    def announce(self, moment: str, step: int = -1) -> Iterator[None]:
        """Bracket a moment of a step."""
        repeat = self.repeats[step, moment] = self.repeats.get((step, moment), -1) + 1
        self._note(step, "between")
        self.recorder.mark(mark_label(step, moment, repeat, "begin"))
        yield
        label = mark_label(step, moment, repeat, "end")
        self.recorder.mark(label)
        self._note(step, moment)
        self.claims += self.claim(moment, label)

    def _note(self, step: int, moment: str) -> None:
        counters = self.recorder.counters()
        self.recorder.reset_peaks()
        self.counters.append((step, moment, counters or {}))

    def document(self) -> dict[str, Any]:
        history = self.recorder.stop()
        history.claims = self.claims
        seen = self.counters
        steady = [row for row in seen if row[0] == STEPS - 1]
        trained = [row for row in steady if row[1] != EVALUATION]
        moments = {"load": next((c["allocated"] for s, _, c in seen if s < 0), 0)}
        for _, moment, found in steady:
            if moment != "between":
                moments[moment] = max(moments.get(moment, 0), found["allocated_peak"])
        return {
            "allocated": max((c["allocated_peak"] for *_, c in seen), default=0),
            "reserved": max((c["reserved_peak"] for *_, c in seen), default=0),
            "step_allocated": max((c["allocated_peak"] for *_, c in trained), default=0),
            "step_reserved": max((c["reserved_peak"] for *_, c in trained), default=0),
            "moments": moments,
            "components": _components(history),
            "retries": seen[-1][2]["retries"] if seen else 0,
            "oom": self.oom,
            "events": [[e.kind, e.address, e.nbytes] for e in history.events if e.kind in (ALLOC, FREE)],
            "marks": [[mark.label, mark.position] for mark in history.marks],
            "lines": [event.op for event in history.events if event.kind in (ALLOC, FREE)]
            if self.stacks
            else [],
        }


def _components(history: History) -> dict[str, int]:
    """Requested bytes by component at the steady step's peak."""
    from memplan.profiler.history import highest, levels

    blocks = blocks_of(history.events)
    own(history, blocks)
    spans = [span for span in history.spans() if span.step == STEPS - 1]
    if not spans:
        return {}
    _, place = highest(levels(history.events), min(s.begin for s in spans), max(s.end for s in spans))
    return components_at(blocks, place)
