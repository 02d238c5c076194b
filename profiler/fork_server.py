"""The process that cases are forked from. It imports the heavy libraries once, initializes no device, and
runs no tensor operation.

Importing torch, transformers and accelerate costs seconds, forking milliseconds. CUDA cannot be used in a
process forked from one that has initialized it, so nothing here may ask for the device; bitsandbytes, and so
peft, does when imported: the child imports those.

It reads one JSON request a line on standard input and answers on standard output; `isolate.py` is its client.
End of input ends it and every child. It is single-threaded and never blocks on a child, so that a hang costs
its own case alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import json
import logging
import os
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from memplan.planner.run.extras import load, out_of_sight

PRELOAD = (
    "torch",
    "transformers",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "accelerate",
)
"""What the parent imports; tests/test_profiler_isolate.py shows that none of it asks for a CUDA device."""
PRELOAD_CPU = (*PRELOAD, "peft", "bitsandbytes")
"""What it imports for cases on the CPU, with every GPU hidden from it."""
ASK_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""With it, a library that asks torch.cuda.is_available() while it is imported is answered by NVML, which
initializes no CUDA (torch 2.11 cuda/__init__.py is_available).
"""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_FIRST_TO_GO = "1000"  # proc_pid_oom_score_adj(5)
_TAIL = 2000


@dataclass
class _Child:
    id: int
    pid: int
    pipe: int
    started: float
    deadline: float | None
    log: str | None
    answer: bytearray = field(default_factory=bytearray)
    timed_out: bool = False
    closed: bool = False


def preload(names: Sequence[str]) -> list[str]:
    """Import modules by name; the names that could not be imported. torchao 0.18 utils.py is_sm_at_least_100
    initializes CUDA while it is imported, which transformers does where it is installed: out of sight here.
    A case whose optimizer is torchao's imports it itself.
    """
    missing = []
    with out_of_sight("torchao"):
        for name in names:
            try:
                load(name) if name in ("peft", "bitsandbytes") else importlib.import_module(name)
            except ImportError:
                missing.append(name)
    return missing


def resolve_target(target: str) -> Callable[..., Any]:
    """The callable behind `module:function`."""
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def run_target(request: dict[str, Any]) -> dict[str, Any]:
    """Call the target; its result, or what it raised, as a JSON object."""
    from memplan.planner.tables.errors import MemplanError

    arguments = request.get("arguments") or []
    try:
        function = resolve_target(request["target"])
        result = function(**arguments) if isinstance(arguments, dict) else function(*arguments)
        return {"outcome": "ok", "result": result}
    except MemplanError as error:
        return {"outcome": "refused", "message": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"outcome": "exception", "message": f"{type(error).__name__}: {error}"[:_TAIL]}


def _die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Ask the kernel for a signal to this process when its parent ends, however that happens (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def _go_first() -> None:
    """Where the host runs out of memory, the kernel takes a case rather than whatever else runs there
    (Linux).
    """
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as handle:
        handle.write(_FIRST_TO_GO)


def _become_child(request: dict[str, Any], pipe: int, parent: int) -> None:
    """Everything between fork and exit; never returns."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the nursery's own way to end
        os.setsid()  # a group of its own, so that a kill takes its own children too
        _die_with_parent(parent)
        _go_first()
        os.environ.update(request.get("environment") or {})
        nothing = os.open(os.devnull, os.O_RDWR)
        log = (
            os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            if request.get("log")
            else nothing
        )
        for source, number in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, number)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(line_buffering=True)  # a crash flushes nothing
        answer = json.dumps(run_target(request)).encode()
        while answer:
            answer = answer[os.write(pipe, answer) :]
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


class Nursery:
    """The event loop: requests in, forks, answers out."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests, self._answers = requests, answers
        self._children: dict[int, _Child] = {}  # by request id
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, selectors.EVENT_READ)
        self._buffer = b""

    def serve(self) -> None:
        """Fork a child for each request, pass on what children say, and end those past their deadline, until
        the parent goes away.
        """
        signal.signal(signal.SIGTERM, self._end)
        self._say({"ready": os.getpid()})
        while True:
            for key, _ in self._selector.select(self._wait_seconds()):
                if key.data is not None:
                    self._read_child(key.data)
                elif not self._read_requests():
                    self._kill_all()
                    return
            self._sweep()

    def _wait_seconds(self) -> float | None:
        if any(child.closed for child in self._children.values()):
            return 0.005  # its pipe is closed, its exit status not there yet
        ends = [
            child.deadline
            for child in self._children.values()
            if child.deadline is not None and not child.timed_out
        ]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _say(self, document: dict[str, Any]) -> None:
        data = (json.dumps(document) + "\n").encode()
        while data:
            data = data[os.write(self._answers, data) :]

    def _read_requests(self) -> bool:
        chunk = os.read(self._requests, 1 << 16)
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if request.get("cancel"):
                child = self._children.get(request["id"])
                if child is not None:
                    self._kill(child)
            else:
                self._fork(request)
        return bool(chunk)

    def _fork(self, request: dict[str, Any]) -> None:
        readable, writable = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            for held in (
                self._requests,
                self._answers,
                readable,
                *(child.pipe for child in self._children.values() if not child.closed),
            ):
                with contextlib.suppress(OSError):
                    os.close(held)
            _become_child(request, writable, parent)
        os.close(writable)
        now = time.monotonic()
        seconds = request.get("deadline")
        child = _Child(
            request["id"], pid, readable, now, now + seconds if seconds else None, request.get("log")
        )
        self._children[child.id] = child
        self._selector.register(readable, selectors.EVENT_READ, child)
        self._say({"id": child.id, "started": pid})

    def _read_child(self, child: _Child) -> None:
        chunk = os.read(child.pipe, 1 << 16)
        if chunk:
            child.answer += chunk
            return
        self._selector.unregister(child.pipe)
        os.close(child.pipe)
        child.closed = True

    def _kill(self, child: _Child) -> None:
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(child.pid, signal.SIGKILL)

    def _sweep(self) -> None:
        """Kill what is past its deadline; report what has ended."""
        now = time.monotonic()
        for child in list(self._children.values()):
            if child.deadline is not None and now >= child.deadline and not child.timed_out:
                child.timed_out = True
                self._kill(child)
            if child.closed:
                pid, status = os.waitpid(child.pid, os.WNOHANG)
                if pid:
                    self._report(child, status)

    def _report(self, child: _Child, status: int) -> None:
        del self._children[child.id]
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # children that outlived it
        answer: dict[str, Any]
        try:
            answer = json.loads(child.answer)
        except ValueError:
            answer = _ended(child, status)
        tail = "" if answer["outcome"] == "ok" else _tail(child.log)
        self._say({"id": child.id, **answer, "seconds": time.monotonic() - child.started, "log_tail": tail})

    def _end(self, number: int, frame: Any) -> None:
        """Asked to end, or the campaign was killed: every case goes with its own children."""
        self._kill_all()
        os._exit(128 + number)

    def _kill_all(self) -> None:
        for child in list(self._children.values()):
            self._kill(child)


def _ended(child: _Child, status: int) -> dict[str, Any]:
    """The outcome of a child that gave no answer."""
    if child.timed_out:
        return {"outcome": "timeout", "message": "no end within its deadline: killed"}
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        hint = " (the host may have run out of memory)" if name == "SIGKILL" else ""
        return {"outcome": "crash", "message": f"ended by {name}{hint}"}
    return {
        "outcome": "exit",
        "message": f"ended without an answer, exit status {os.waitstatus_to_exitcode(status)}",
    }


def _tail(log: str | None) -> str:
    if log is None:
        return ""
    with contextlib.suppress(OSError), open(log, "rb") as handle:
        handle.seek(max(0, os.fstat(handle.fileno()).st_size - _TAIL))
        return handle.read().decode(errors="replace")
    return ""


def main(names: Sequence[str] = PRELOAD, parent: int | None = None) -> None:
    """Serve on standard input and output, which the imports' own messages must not reach. `parent`: the
    process whose end is this one's, also while it imports and hears nothing on its input.
    """
    if parent is not None:
        _die_with_parent(parent, signal.SIGTERM)
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.environ.setdefault(ASK_NVML, "1")
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # on import it warns of CPU kernels that it lacks: nothing about memory
    preload(names)
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        Nursery(requests, answers).serve()
