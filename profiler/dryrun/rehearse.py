"""One dry run from a command line to its observation; after running out of memory, a second one without a
bound.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memplan.planner.tables.errors import MemplanError, UsageError, shorten
from memplan.planner.tables.gpus import Gpu, common_gpus, context_bytes
from memplan.profiler.dryrun.build import architecture, preload, stub_libraries
from memplan.profiler.dryrun.cards import MULTIPROCESSORS, capability_of, card_environment, check_card
from memplan.profiler.dryrun.interpreter import Interpreter, find_interpreter, resolve
from memplan.profiler.dryrun.launch import Ended, run_program
from memplan.profiler.dryrun.observation import Observation, observe

OUTPUT_SHOWN = 80
"""Lines of a failed program's own output that are repeated."""
_OFFLINE = re.compile(
    r"ConnectionError|MaxRetryError|LocalEntryNotFoundError|Name or service not known"
    r"|Temporary failure in name|OfflineModeIsEnabled|GatedRepoError|couldn't connect to|ConnectTimeout"
    r"|ProxyError"
)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What was asked for: `steps` 0 lets the program end by itself; `timeout` in seconds."""

    command: tuple[str, ...]
    gpu: Gpu | None
    gpus: int = 1
    python: str | None = None
    timeout: float = 600.0
    steps: int = 2
    random_weights: bool = False
    snapshot: Path | None = None


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What came of it. `unbounded`: the same program where memory does not run out, after it did."""

    request: Rehearsal
    interpreter: Interpreter
    observation: Observation
    unbounded: Observation | None
    seconds: float

    @property
    def needed(self) -> Observation | None:
        """The observation that reached its steps."""
        return self.unbounded if self.observation.refused is not None else self.observation

    @property
    def context_bytes(self) -> int:
        """Bytes of the CUDA context on the GPU that was asked for."""
        gpu = self.request.gpu
        return gpu.context_bytes if gpu is not None else context_bytes(None)

    @property
    def fits(self) -> bool:
        """Whether no allocation was refused."""
        return self.observation.refused is None

    def holding(self) -> tuple[Gpu, ...]:
        """Common GPUs, smallest first, that hold what was reserved, with their own CUDA contexts."""
        if self.needed is None:
            return ()
        reserved = self.needed.reserved_bytes
        return tuple(gpu for gpu in common_gpus() if reserved + gpu.context_bytes <= gpu.usable_bytes)

    def to_document(self) -> dict[str, Any]:
        """memplan.dry-run/1."""
        request, found = self.request, self.observation
        document = found.to_document(self.context_bytes)
        gpu = request.gpu
        used = found.reserved_bytes + self.context_bytes
        verdict: dict[str, Any] = {"verdict": None}
        if gpu is not None:
            verdict = {
                "name": gpu.name,
                "usable_bytes": gpu.usable_bytes,
                "verdict": "fits" if self.fits else "no",
                "headroom_bytes": gpu.usable_bytes - used if self.fits else None,
            }
        return {
            **document,
            "command": list(request.command),
            "gpu": verdict,
            "gpus_that_hold_it": [gpu.name for gpu in self.holding()],
            "unbounded": self.unbounded.to_document(self.context_bytes)["peak"] if self.unbounded else None,
            "python": str(self.interpreter.path),
            "random_weights": request.random_weights,
            "seconds": round(self.seconds, 2),
        }


class ProgramFailed(MemplanError):
    """The program's own failure: `output` is shown before the message."""

    def __init__(self, message: str, output: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code, self.output = exit_code, output


def rehearse(request: Rehearsal, notice: Callable[[str], None] = lambda text: None) -> Rehearsed:
    """Run it. Raises UsageError before it starts, ProgramFailed where it does not reach its steps."""
    check_card(request.gpu, request.gpus)
    interpreter = find_interpreter(request.python)
    command = resolve(request.command, interpreter)
    notice("building the stub libraries")
    folder = stub_libraries(interpreter.path, interpreter.sites, interpreter.torch, interpreter.cuda)
    libraries, kernels = preload(folder), kernels_for(request.gpu, interpreter, folder)

    def attempt(bounded: bool) -> tuple[Ended, Observation | None]:
        variables = {
            **card_environment(request.gpu, request.gpus, kernels, bounded),
            "MEMPLAN_DRYRUN_STEPS": str(request.steps),
            "MEMPLAN_DRYRUN_RANDOM_WEIGHTS": str(int(request.random_weights)),
        }
        if request.snapshot is not None and bounded:
            variables["MEMPLAN_DRYRUN_SNAPSHOT"] = os.path.abspath(request.snapshot)
        ended = run_program(command, variables, libraries, request.timeout, notice)
        return ended, observe([json.loads(report) for report in ended.reports])

    ended, found = attempt(True)
    found = _checked(request, ended, found)
    unbounded = None
    if found.refused is not None:
        notice("out of memory: once more where memory does not run out")
        again, unbounded = attempt(False)
        if unbounded is not None and not unbounded.steps:
            unbounded = None
        ended = Ended(ended.status, ended.output, (), "", ended.seconds + again.seconds)
    return Rehearsed(request, interpreter, found, unbounded, ended.seconds)


def kernels_for(gpu: Gpu | None, interpreter: Interpreter, folder: Path) -> int:
    """The architecture whose kernels run. Raises UsageError where torch was built without any for the GPU."""
    wanted = capability_of(gpu)
    found = architecture(folder, wanted)
    if found is None or wanted not in MULTIPROCESSORS:
        raise UsageError(
            f"torch {interpreter.torch} has no kernels for {gpu.name if gpu else 'a GPU'} (compute "
            f"capability {wanted[0]}.{wanted[1]})"
        )
    return found


def _checked(request: Rehearsal, ended: Ended, found: Observation | None) -> Observation:
    """The observation, where it is one of a training."""
    line = shlex.join(request.command)
    if ended.status is None:
        doing = f" (last seen: {ended.last_progress})" if ended.last_progress else " (it had not used CUDA)"
        wanted = f"{request.steps} optimizer steps" if request.steps else "its end"
        raise _failed(
            f"'{shorten(line)}' did not reach {wanted} in {request.timeout:g} s{doing}: ended", ended
        )
    if found is not None and found.outcome == "oom":
        return found
    if ended.status != 0:
        raise _why(line, ended)
    if found is None:
        raise _failed(
            f"'{shorten(line)}' ended without using CUDA: nothing to observe (does it run under another "
            "Python than --python, or on the CPU by its own settings?)",
            ended,
        )
    if request.steps and not found.steps:
        raise _failed(f"'{shorten(line)}' ended without an optimizer step: it never trained", ended)
    return found


def _why(line: str, ended: Ended) -> ProgramFailed:
    status = ended.status or 0
    how = f"was ended by signal {-status}" if status < 0 else f"ended with exit status {status}"
    tail = "\n".join(ended.output.splitlines()[-OUTPUT_SHOWN:])
    if "EOFError" in tail:
        return _failed(f"'{shorten(line)}' reads standard input, which is empty in a dry run", ended)
    if _OFFLINE.search(tail):
        return _failed(
            f"'{shorten(line)}' needs the network, which it could not reach: see its traceback", ended, 3
        )
    return _failed(f"'{shorten(line)}' {how}: see its own output above", ended)


def _failed(message: str, ended: Ended, code: int = 2) -> ProgramFailed:
    return ProgramFailed(message, "\n".join(ended.output.splitlines()[-OUTPUT_SHOWN:]), code)
