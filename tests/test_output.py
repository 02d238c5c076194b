"""Output that cannot be written, files that are somebody else's, and interrupts: one message, nothing
torn.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from memplan.cli.output import write_file
from memplan.cli.report import command
from memplan.planner.tables.errors import UsageError

ROOT = Path(__file__).parent.parent
MEMPLAN = [sys.executable, "-m", "memplan"]


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line.replace("memplan", " ".join(MEMPLAN))],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "line",
    [
        *("memplan gpt2 --json > /dev/full", "memplan gpt2 > /dev/full", "memplan list gpus > /dev/full"),
        *("memplan gpt2 --json >&-", "memplan list gpus >&-", "memplan oom <&-", "memplan gpt2 --bad 2>&-"),
    ],
)
def test_output_that_cannot_be_written_is_one_message(line):
    done = shell(line)
    assert done.returncode == 2 and done.stdout == "", done
    assert len(done.stderr.splitlines()) == (0 if line.endswith("2>&-") else 1), done.stderr


def test_a_file_is_whole_or_untouched(tmp_path, monkeypatch):
    path = tmp_path / "a.html"
    write_file(path, "<!-- memplan --> one")
    path.chmod(0o640)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left on device"):
        write_file(path, "two" * 10_000)
    assert path.read_text() == "<!-- memplan --> one" and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write_file(path, "<!-- memplan --> three")
    assert path.read_text().endswith("three") and path.stat().st_mode & 0o777 == 0o640


def test_what_memplan_did_not_write_is_not_overwritten(tmp_path):
    path = tmp_path / "thesis.html"
    path.write_text("<!doctype html><p>three years of work")
    with pytest.raises(UsageError, match="exists and is not a file that memplan wrote"):
        write_file(path, "x")
    assert "three years" in path.read_text()
    path.write_text("")  # as mktemp leaves it
    write_file(path, "x")
    assert path.read_text() == "x"


def test_a_page_is_written_into_a_folder_of_any_name(tmp_path):
    folder = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.mkdir(folder)
    path = os.fsdecode(folder) + "/a.html"
    for _ in range(2):  # new, and over its own
        shown = CliRunner().invoke(command, ["gpt2", "--seq", "64", "-o", path], standalone_mode=False)
        assert shown.exception is None, shown.exception
    assert Path(path).read_text().rstrip().endswith("</html>") and os.listdir(folder) == [b"a.html"]


@pytest.mark.parametrize("after", [0.5, 0.8, 1.1, 1.5])
def test_an_interrupt_is_one_word_wherever_it_comes(after):
    """The formula's tape runs Python code while objects die: there an interrupt waits a moment."""
    line = [*MEMPLAN, "fit", "deepseek-v3", "--gpu", "b200", "--method", "full"]
    started = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(after)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode in (0, 1, 130, -signal.SIGINT), err  # it may have come to its end before
    assert "ignored" not in err and (started.returncode != 130 or err == "memplan: interrupted\n"), err


@pytest.mark.parametrize("death", ["__del__", "weakref.finalize(made, die)"])
def test_an_interrupt_at_a_death_is_not_lost(death):
    """Python prints and forgets what a `__del__` or a weak reference's callback raises."""
    code = f"""if True:
        import signal, sys, weakref
        from memplan.cli.stopping import interrupts_are_heard

        def die(self=None):
            signal.raise_signal(signal.SIGINT)
            sum(range(1000))

        class Dies:
            pass

        with interrupts_are_heard():
            try:
                made = Dies()
                {"Dies.__del__ = die" if death == "__del__" else death}
                del made
                while True:
                    pass
            except KeyboardInterrupt:
                print("interrupted")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


@pytest.mark.trace
def test_what_the_libraries_log_reaches_no_reader():
    """transformers 5.24 imports torchao where it is installed, which logs the kernels that it cannot load."""
    pytest.importorskip("torchao")
    line = [*MEMPLAN, "plan", "gpt2", "--method", "lora", "--engine", "trace"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
