"""No signal at any moment costs a campaign a finished record, tears one, or leaves a process behind."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from campaign_fakes import PIDS, TINY

from memplan.profiler import record

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_a_campaign_ends_its_children_first(tmp_path: Path, number: int) -> None:
    """`timeout` and batch systems send SIGTERM: the summary is printed, the exit code is Ctrl-C's, no process
    and no torn file stays.
    """
    file, out, pids = tmp_path / "slow.yaml", tmp_path / "out", tmp_path / "pids"
    pids.mkdir()
    grid = [{"model": "tiny", "grid": {"rank": list(range(1, 20))}}]
    file.write_text(json.dumps({"device": "cpu", "models": {"tiny": TINY}, "steps": 400, "cases": grid}))
    script = textwrap.dedent(f"""
        import signal, sys; sys.path[:] = {sys.path!r}
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        from memplan.profiler import campaign
        from memplan.cli.main import run
        fakes = ("campaign_fakes:describe", "campaign_fakes:predict", "campaign_fakes:measure")
        campaign.Targets.__init__.__defaults__ = fakes
        campaign.run.__kwdefaults__["preload"] = ()
        sys.exit(run(["campaign", {str(file)!r}, "--out", {str(out)!r}]))
    """)
    around = {**os.environ, PIDS: str(pids)}
    client = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=around
    )
    end = time.monotonic() + 30
    while not list(out.glob("*.json")) and time.monotonic() < end:
        time.sleep(0.05)
    client.send_signal(number)
    said, errors = client.communicate(timeout=30)
    assert client.returncode == 130, errors
    assert "stopped: interrupted" in said
    found, problems = record.scan(out)
    assert found
    assert problems == []
    started = [int(path.name) for path in pids.iterdir()]
    assert started
    for pid in started:
        assert not _is_running(pid)


def _is_running(pid: int) -> bool:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.05)
    return True


CLIENT = """
    import sys; sys.path[:] = {path!r}
    from pathlib import Path
    from memplan.profiler import campaign, case_matrix
    {cases}
    campaign.run(cases, Path({out!r}), {options})
"""


MARK = "MEMPLAN_TEST_MARK"


def _left_running(mark: str, seconds: float = 2.0) -> list[str]:
    """Command lines of the processes that still have `mark` in their environment after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.05)


def _start(script: str, mark: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, MARK: mark},
    )


@pytest.mark.skipif(sys.platform != "linux", reason="a child's death with its parent is Linux's prctl")
def test_a_worker_that_still_imports_dies_with_its_campaign(tmp_path: Path) -> None:
    (tmp_path / "naps.py").write_text("import time\ntime.sleep(60)\n")
    script = f"""
        import sys; sys.path[:] = {[str(tmp_path), *sys.path]!r}
        from memplan.profiler.isolate import Isolation
        Isolation(preload=("naps",)).run("os:getpid")
    """
    client = _start(textwrap.dedent(script), str(tmp_path))
    end = time.monotonic() + 20
    while len(_left_running(str(tmp_path), 0)) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)
    assert len(_left_running(str(tmp_path), 0)) == 2
    client.kill()
    client.wait()
    assert _left_running(str(tmp_path)) == []


def _killed_often(script: str, out: Path, pause: tuple[float, float], times: int = 10) -> int:
    """Start the client and kill it after a random pause, as often as said or until it ends by itself; how
    often it was killed. Nothing of it runs on, and no record that was there changes.
    """
    chance = random.Random(7)
    seen: dict[Path, bytes] = {}
    kills = 0
    for _ in range(times):
        client = _start(script, str(out))
        time.sleep(chance.uniform(*pause))
        if client.poll() is None:
            os.kill(client.pid, signal.SIGKILL)
            kills += 1
        ended = client.wait() == 0
        assert _left_running(str(out)) == []
        for path in out.glob("*.json"):
            content = path.read_bytes()
            json.loads(content)
            assert seen.setdefault(path, content) == content
        if ended:
            break
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600)
    for path, content in seen.items():
        assert path.read_bytes() == content, "measured twice"
    return kills


def _check_twelve(out: Path) -> None:
    found, problems = record.scan(out)
    assert problems == []
    assert len(found) == 12
    assert len({measurement.identity for _, measurement in found}) == 12
    assert not [path for path in out.iterdir() if path.suffix == ".tmp"]


def test_twelve_cases_killed_ten_times_end_as_twelve_records(tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = tmp_path / "twelve.yaml"
    grid = [{"model": "tiny", "grid": {"rank": list(range(1, 13))}}]
    file.write_text(json.dumps({"device": "cpu", "models": {"tiny": TINY}, "steps": 150, "cases": grid}))
    targets = (
        "targets=campaign.Targets('campaign_fakes:describe', 'campaign_fakes:predict', "
        "'campaign_fakes:measure'), preload=()"
    )
    cases = f"cases = case_matrix.read(Path({str(file)!r}))"
    script = textwrap.dedent(CLIENT).format(path=sys.path, cases=cases, out=str(out), options=targets)
    kills = _killed_often(script, out, (0.3, 1.2))
    assert kills >= 5
    _check_twelve(out)


@pytest.mark.slow
@pytest.mark.trace
def test_twelve_real_cases_end_as_twelve_records_after_twenty_kills(tmp_path: Path) -> None:
    """A campaign that ends before the twentieth kill begins again in another folder."""
    cases = f"cases = case_matrix.read(Path({str(ROOT / 'campaigns' / 'cpu.yaml')!r}))"
    kills = 0
    for number in range(20):
        out = tmp_path / f"out{number}"
        script = textwrap.dedent(CLIENT).format(path=sys.path, cases=cases, out=str(out), options="")
        kills += _killed_often(script, out, (4.0, 25.0), 20 - kills)
        _check_twelve(out)
        assert {measurement.outcome for _, measurement in record.scan(out)[0]} == {"ok"}
        if kills >= 20:
            break
    print(f"{kills} kills of a running campaign, {number + 1} campaigns")
    assert kills == 20
