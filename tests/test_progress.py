"""Progress: one line on a terminal, gone at the end whatever happens; nothing in a pipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")

from memplan.cli.main import run  # noqa: E402
from memplan.cli.progress import CLEAR, Progress  # noqa: E402
from memplan.planner.tables.errors import UsageError  # noqa: E402
from memplan.planner.tables.progress import listening, tell, telling  # noqa: E402

TINY = {
    "model_type": "glm4",  # the formula has no rule for it: plan, compare and fit trace it
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "vocab_size": 512,
    "pad_token_id": 0,
    "max_position_embeddings": 4096,
}
COLUMNS = 60


class Terminal:
    """A pseudo-terminal of COLUMNS columns, in a `with` block this process's standard error; `text` is what
    it was sent, all of it once the block ended.
    """

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, COLUMNS))
        self.stream = os.fdopen(slave, "w")
        self._data, self._reader = b"", threading.Thread(target=self._read)
        self._reader.start()

    @property
    def text(self) -> str:
        return self._data.decode(errors="replace")

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 4096)
            except OSError:  # Linux: the other side is closed
                return
            if not data:
                return
            self._data += data

    def __enter__(self) -> Terminal:
        self._before, sys.stderr = sys.stderr, self.stream
        return self

    def __exit__(self, *_: object) -> None:
        sys.stderr = self._before
        self.end()

    def end(self) -> None:
        self.stream.close()
        self._reader.join(60)
        os.close(self._master)


@pytest.fixture(autouse=True)
def term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with a model that is traced, and no trace kept from before."""
    for library in ("torch", "transformers", "peft"):
        pytest.importorskip(library)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    return str(tmp_path)


def lines(text: str) -> list[str]:
    """What stood on the line, one after the other. Nothing else may have been written."""
    start, *found, last = text.split(CLEAR)
    assert start == last == "" and "\n" not in text
    return found


TRACED = (
    (["plan"], ["--method", "lora"], "plan: 1 x 64 tokens: step 1 of 2, forward, layer 2 of 2"),
    (["plan"], ["--engine", "trace"], "plan: step 2 of 2, backward"),
    (["compare"], ["--methods", "lora"], "compare: lora: 1 x 64 tokens: "),
    pytest.param(["fit"], ["--gpu", "0.7GiB"], "fit: qlora: does 1 x 1", marks=pytest.mark.slow),
)


@pytest.mark.parametrize(("command", "options", "shown"), TRACED)
def test_a_trace_says_where_it_is(model: str, command: list[str], options: list[str], shown: str) -> None:
    with Terminal() as terminal:
        assert run([*command, model, "--seq", "64", *options]) == 0
    found = lines(terminal.text)
    assert any(line.startswith(shown) for line in found), found
    assert all(len(line) < COLUMNS for line in found)


def test_none_in_a_pipe(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--json"]):
        assert run(["plan", model, "--seq", "64", "--engine", "trace", *options]) == 0
        assert capsys.readouterr().err == ""


def test_none_beside_a_document_that_goes_to_a_pipe(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal() as terminal:
        assert run(["plan", model, "--seq", "64", "--json"]) == 0
    assert terminal.text == "" and json.loads(capsys.readouterr().out)["engine"] == "trace"


def test_a_report_and_claims_say_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with Terminal() as terminal:
        assert run(["report", "gpt2", "-o", str(tmp_path / "page.html")]) == 0
        assert run(["claims", "--only", "2,3"]) == 0
    text = terminal.text
    assert f"{CLEAR}report: lora, checkpointing none, loss full, attention sdpa{CLEAR}" in text
    assert f"{CLEAR}wrote " in text, "the line is gone before the next one is printed"
    assert f"{CLEAR}claims: 3 (2 of 2)" in text and text.endswith(CLEAR)


def test_the_line_is_gone_after_an_error() -> None:
    with Terminal() as terminal:
        with pytest.raises(UsageError), Progress("plan"):
            tell("step 1 of 2")
            raise UsageError("no")
        tell("after the end nobody listens")
    assert lines(terminal.text) == ["plan: step 1 of 2"]


def test_a_command_that_fails_leaves_its_message_alone(model: str) -> None:
    """transformers has the class, and no such activation: it fails within the trace."""
    (Path(model) / "config.json").write_text(json.dumps({**TINY, "hidden_act": "no_such_activation"}))
    with Terminal() as terminal:
        assert run(["plan", model, "--seq", "64"]) == 2
    told, _, message = terminal.text.rpartition(CLEAR)
    assert "building the model" in told and message.startswith("memplan: ")


def test_ctrl_c_takes_the_line_away(model: str) -> None:
    terminal = Terminal()
    command = [sys.executable, "-m", "memplan", "plan", "gpt2", "--method", "lora", "--engine", "trace"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal.stream)
    terminal.stream.close()
    while "layer 2" not in terminal.text and process.poll() is None:
        threading.Event().wait(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    terminal.end()
    assert terminal.text.rpartition(CLEAR)[2].strip() == "memplan: interrupted"


def test_none_on_a_terminal_that_cannot_erase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with Terminal() as terminal, Progress("plan"):
        tell("step 1 of 2")
    assert terminal.text == ""


def test_a_name_moves_no_cursor() -> None:
    with Terminal() as terminal, Progress("claims"), telling("\x1b[2J\rname" * 40):
        tell("part")
    found = lines(terminal.text)
    assert len(found) == 2 and all(line.isprintable() and len(line) < COLUMNS for line in found)


def test_parts_are_told_with_their_names() -> None:
    heard: list[str] = []
    with listening(heard.append), telling("lora"):
        tell("step 1")
        with listening(lambda text: None):
            tell("another's")
    tell("nobody's")
    assert heard == ["lora", "lora: step 1"]
