"""A case that raises, crashes, is killed or hangs is a report about that case and costs no other; the parent
never touches CUDA.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memplan.profiler.fork_server import PRELOAD
from memplan.profiler.isolate import Isolation


@pytest.fixture(scope="module")
def isolation() -> Iterator[Isolation]:
    with Isolation(preload=()) as open_one:
        yield open_one


@pytest.mark.parametrize(
    ("target", "arguments", "outcome", "says"),
    [
        ("builtins:eval", ["[1, 'zwei']"], "ok", ""),
        ("builtins:eval", ["1 / 0"], "exception", "ZeroDivisionError: division by zero"),
        ("memplan.planner.tables.units:parse_size", ["many"], "refused", "'many' is not a size"),
        ("os:abort", [], "crash", "ended by SIGABRT"),
        (
            "builtins:eval",
            ["__import__('os').kill(__import__('os').getpid(), 9)"],
            "crash",
            "ended by SIGKILL (the host may",
        ),
        ("os:_exit", [7], "exit", "exit status 7"),
        ("time:sleep", [60], "timeout", "killed"),
        ("no_such_module:f", [], "exception", "ModuleNotFoundError"),
        ("builtins:object", [], "exit", "without an answer"),  # a result that is no JSON
    ],
)
def test_every_end_is_a_report(
    isolation: Isolation, target: str, arguments: list[object], outcome: str, says: str
) -> None:
    report = isolation.run(target, arguments, deadline=0.5 if outcome == "timeout" else 20)
    assert (report.outcome, says in report.message) == (outcome, True), report
    assert isolation.run("builtins:eval", ["[1, 'zwei']"]).result == [1, "zwei"]


def test_a_crash_costs_no_neighbor(isolation: Isolation) -> None:
    slow = isolation.submit("builtins:eval", ["__import__('time').sleep(0.5) or 'here'"])
    bad = isolation.submit("os:abort")
    reports = {report.id: report for report in (isolation.wait(), isolation.wait()) if report}
    assert reports[bad].outcome == "crash"
    assert reports[slow].result == "here"


def test_a_large_answer_and_the_log_of_a_failure_come_back(isolation: Isolation, tmp_path: Path) -> None:
    assert len(isolation.run("builtins:eval", ["'x' * 3_000_000"]).result) == 3_000_000
    log = tmp_path / "log"
    report = isolation.run("builtins:eval", ["print('reached') or 1 / 0"], log=log)
    assert "reached" in report.log_tail
    assert "ZeroDivisionError" in log.read_text()


def test_the_environment_is_the_childs_alone(isolation: Isolation) -> None:
    ask = ["__import__('os').environ.get('MEMPLAN_TEST')"]
    assert isolation.run("builtins:eval", ask, environment={"MEMPLAN_TEST": "1"}).result == "1"
    assert isolation.run("builtins:eval", ask).result is None


def test_cancel_kills_and_reports(isolation: Isolation) -> None:
    job = isolation.submit("time:sleep", [60])
    isolation.cancel(job)
    report = isolation.wait(20)
    assert report is not None
    assert (report.id, report.outcome) == (job, "crash")


def test_a_timed_out_case_takes_its_own_children_along(isolation: Isolation, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = f"import os,time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    job = f"__import__('subprocess').run([{sys.executable!r}, '-c', {code!r}])"
    assert isolation.run("builtins:eval", [job], deadline=2).outcome == "timeout"
    _wait_gone(int(pid_file.read_text()))


def test_the_nursery_killed_is_a_crash_of_its_jobs_and_a_new_one_starts() -> None:
    with Isolation(preload=()) as isolation:
        nursery = isolation.run("os:getppid").result
        job = isolation.submit("time:sleep", [60])
        os.kill(nursery, signal.SIGKILL)
        report = isolation.wait(20)
        assert report is not None
        assert (report.id, report.outcome) == (job, "crash")
        assert isolation.run("os:getppid").result != nursery


@pytest.mark.skipif(sys.platform != "linux", reason="a child's death with its parent is Linux's prctl")
def test_children_die_with_a_killed_client(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"""
        import sys; sys.path[:] = {sys.path!r}
        from memplan.profiler.isolate import Isolation
        code = "open({str(pid_file)!r}, 'w').write(str(__import__('os').getpid()))"
        code += " and __import__('time').sleep(60)"
        Isolation(preload=()).run("builtins:eval", [code])
    """
    client = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    deadline = time.monotonic() + 20
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    client.kill()
    client.wait()
    _wait_gone(int(pid_file.read_text()))


def _wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as handle:
                if handle.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return
        except OSError:
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} is still there")


@pytest.mark.trace
def test_the_parent_never_asks_for_cuda_and_bitsandbytes_would() -> None:
    """On a machine that says it has a GPU: importing what the nursery imports initializes nothing, importing
    bitsandbytes does.
    """
    script = """
        import sys; sys.path[:] = {path!r}
        import torch
        asked = []

        def available():
            asked.append("is_available")
            return True

        def initialize(*_, **__):
            asked.append("_lazy_init")
            raise RuntimeError("CUDA is being initialized")

        torch.cuda.is_available = available
        torch.cuda._lazy_init = initialize
        torch.cuda.device_count = lambda: 1
        torch._C._cuda_getCurrentRawStream = lambda device: 0  # a CPU build has none
        from memplan.profiler.fork_server import PRELOAD, preload
        missing = preload(PRELOAD)
        imported = ["bitsandbytes" in sys.modules, "peft" in sys.modules]
        print("parent", asked, torch.cuda.is_initialized(), *imported, missing)
        try:
            import bitsandbytes
        except Exception as error:
            print(error, file=sys.stderr)
        print("child", "_lazy_init" in asked)
    """
    code = textwrap.dedent(script).replace("{path!r}", repr(sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.splitlines()[:2] == ["parent [] False False False []", "child True"], (
        done.stdout + done.stderr
    )
    assert "torch" in PRELOAD


@pytest.mark.trace
def test_torchao_which_initializes_cuda_while_it_is_imported_is_left_to_the_case(tmp_path: Path) -> None:
    """torchao 0.18 does, and transformers imports it wherever it is installed."""
    package = tmp_path / "torchao"
    package.mkdir()
    (package / "__init__.py").write_text("import torch\ntorch.cuda.init()\n")
    about = tmp_path / "torchao-9.0.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchao\nVersion: 9.0.0\n")
    script = f"""
        import sys; sys.path[:] = {[str(tmp_path), *sys.path]!r}
        from importlib.util import find_spec
        from memplan.profiler.fork_server import PRELOAD, preload
        print(preload(PRELOAD), "torchao" in sys.modules, find_spec("torchao") is not None)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.splitlines()[:1] == ["[] False True"], done.stdout + done.stderr
