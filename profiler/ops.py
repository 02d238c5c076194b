"""The op audit: every distinct (op, shapes, dtypes) of a traced step, replayed with real tensors, to see what
its kernel takes unseen.

hidden = the allocator's peak during the op minus what is allocated after it (arguments and outputs). The
difference from what `planner/trace/kernels.py` knows of the op is a fact that the table lacks, or has wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from memplan.planner import __version__
from memplan.planner.allocator.native import round_size
from memplan.planner.inputs.setup import Setup
from memplan.profiler.environment import describe, set_allocator
from memplan.profiler.history import highest, levels
from memplan.profiler.record import read_setup
from memplan.profiler.recorders import CpuRecorder

OPS_SCHEMA = "memplan.ops/1"
_REPEATS = 2  # the first call makes workspaces and picks algorithms, the second is measured


@dataclass
class Call:
    """One distinct call: the op, its arguments with tensors replaced by `Like`, and what the table knows of
    its hidden bytes.
    """

    op: Any
    args: Any
    kwargs: Any
    known_bytes: int
    calls: int = 1
    hidden_bytes: int = 0
    output_bytes: int = 0
    failure: str | None = None

    def row(self) -> dict[str, Any]:
        """This op for JSON; sizes in bytes per call."""
        return {
            "op": str(self.op),
            "shapes": shapes_of((self.args, self.kwargs)),
            "calls": self.calls,
            "output_bytes": self.output_bytes,
            "hidden_bytes": self.hidden_bytes,
            "known_bytes": self.known_bytes,
        }


@dataclass(frozen=True)
class Like:
    """A tensor's description: what a real one needs to stand in for it."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{str(self.dtype)[6:]}{list(self.shape)}"

    def make(self, device: str) -> Tensor:
        """A real tensor: small random numbers; zeros for integers, which are legal indices everywhere; True
        for masks.
        """
        stored = [
            1 if stride == 0 else size for size, stride in zip(self.shape, self.stride, strict=True)
        ]  # an expanded tensor repeats
        made = torch.empty_strided(stored, self.stride, dtype=self.dtype, device=device)
        if self.dtype == torch.bool:
            made.fill_(True)
        elif self.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            made.normal_(0, 0.02)
        else:
            made.zero_()
        return made.expand(self.shape)


@dataclass
class _Seen:
    calls: dict[str, Call] = field(default_factory=dict)


def audit(config: Mapping[str, Any], setup: Mapping[str, Any] | Setup, name: str = "model") -> dict[str, Any]:
    """The document `memplan.ops/1`: each op of a traced step with its calls, output, hidden and known bytes;
    and what was not replayed.
    """
    complete = setup if isinstance(setup, Setup) else read_setup(setup)
    device = complete.device
    if device == "cuda":
        set_allocator(complete.allocator)
    environment = describe(device)
    from memplan.profiler.cases import on_this_gpu

    complete = on_this_gpu(complete, environment)
    calls = list(collect(config, complete).values())
    if device == "cuda":
        for call in calls:
            _replay_on_cuda(call)
    else:
        _replay_on_cpu(calls)
    return {
        "schema": OPS_SCHEMA,
        "memplan_version": __version__,
        "model": {"name": name, "config": dict(config)},
        "setup": complete.to_document(),
        "environment": environment,
        "ops": [call.row() for call in sorted(calls, key=lambda c: -c.hidden_bytes) if call.failure is None],
        "skipped": [{**call.row(), "reason": call.failure} for call in calls if call.failure is not None],
    }


def collect(config: Mapping[str, Any], setup: Setup) -> dict[str, Call]:
    """Every distinct call of a traced run that makes or could hide memory, by its description; views are left
    out.
    """
    from memplan.planner.trace.device.target import target_of
    from memplan.planner.trace.events.record import record

    seen = _Seen()
    with _listening(seen):
        record(config, setup, target_of(setup))
    return seen.calls


@contextmanager
def _listening(seen: _Seen) -> Iterator[None]:
    """Note what the trace's observer sees, without changing it."""
    from memplan.planner.trace.observe import Observer

    plain = Observer.__torch_dispatch__

    def noting(
        self: Any, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = plain(self, func, types, args, kwargs)
        if (
            not self._host
            and not getattr(func, "is_view", False)
            and any(t.is_meta for t in _tensors((args, kwargs, out)))
        ):
            outputs = list(_tensors(out))
            key = f"{func} {_described((args, kwargs or {}))}"
            if key in seen.calls:
                seen.calls[key].calls += 1
            else:
                likes, named = _described((args, kwargs or {}))
                seen.calls[key] = Call(func, likes, named, _known(self.kernels, func, args, outputs))
        return out

    Observer.__torch_dispatch__ = noting  # type: ignore[method-assign]
    try:
        yield
    finally:
        Observer.__torch_dispatch__ = plain  # type: ignore[method-assign]


def _known(kernels: Any, op: Any, args: tuple[Any, ...], outputs: list[Tensor]) -> int:
    """Bytes that the table says this call hides while it runs, in blocks where the allocator has them; what
    stays is left out.
    """
    fresh = type(kernels)(kernels.target)  # the run's own one remembers which workspaces it has reported
    sizes = [hidden.nbytes for hidden in fresh(op, args, outputs) if not hidden.persistent]
    return sum(sizes) if kernels.target.device == "cpu" else sum(map(round_size, sizes))


def _described(value: Any) -> Any:
    """Arguments with every tensor replaced by its description."""
    if isinstance(value, Tensor):
        return Like(tuple(value.shape), tuple(value.stride()), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(_described(inner) for inner in value)
    if isinstance(value, dict):
        return {key: _described(inner) for key, inner in value.items()}
    return value


def _real(value: Any, device: str) -> Any:
    """The arguments of a real call; lists stay lists, the meta device becomes the real one."""
    if isinstance(value, Like):
        return value.make(device)
    if isinstance(value, tuple):
        return [_real(inner, device) for inner in value]
    if isinstance(value, dict):
        return {key: _real(inner, device) for key, inner in value.items()}
    if isinstance(value, torch.device) and value.type == "meta":
        return torch.device(device)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def shapes_of(value: Any) -> str:
    """The tensors among arguments as text, equal neighbors counted once: 'bfloat16[64, 128] bfloat16[128,
    256]'.
    """
    likes = [str(like) for like in _likes(value)]
    runs: list[tuple[str, int]] = []
    for text in likes:
        if runs and runs[-1][0] == text:
            runs[-1] = (text, runs[-1][1] + 1)
        else:
            runs.append((text, 1))
    shown = [text if count == 1 else f"{count}x {text}" for text, count in runs[:8]]
    return " ".join(shown) + (" ..." if len(runs) > 8 else "")


def _likes(value: Any) -> Iterator[Like]:
    if isinstance(value, Like):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _likes(inner)
    elif isinstance(value, dict):
        yield from _likes(list(value.values()))


def _bytes_of(out: Any) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(out)}
    return sum(storages.values())


def _replay_on_cuda(call: Call) -> None:
    """Peak of the op minus what is allocated after it, by the caching allocator's own counters."""
    try:
        args, kwargs = _real(call.args, "cuda"), _real(call.kwargs, "cuda")
        with torch.no_grad():
            for _ in range(_REPEATS):
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                out = call.op(*args, **kwargs)
                torch.cuda.synchronize()
                peak, after = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
                call.output_bytes = _bytes_of(out)
                del out
        call.hidden_bytes = peak - after
    except Exception as error:  # an op that needs arguments that only a real run has
        call.failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]


def _replay_on_cpu(calls: list[Call]) -> None:
    """The same from the CPU allocator's events, all ops under one recording."""
    recorder = CpuRecorder()
    recorder.start()
    for number, call in enumerate(calls):
        try:
            args, kwargs = _real(call.args, "cpu"), _real(call.kwargs, "cpu")
            with torch.no_grad():
                recorder.mark(f"{number} begin")
                out = call.op(*args, **kwargs)
                recorder.mark(f"{number} end")
                call.output_bytes = _bytes_of(out)
                del out
        except Exception as error:
            call.failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    history = recorder.stop()
    running = levels(history.events)
    places = {mark.label: mark.position for mark in history.marks}
    for number, call in enumerate(calls):
        begin, end = places.get(f"{number} begin"), places.get(f"{number} end")
        if call.failure is None and begin is not None and end is not None:
            call.hidden_bytes = highest(running, begin, end)[0] - (running[end - 1] if end else 0)
