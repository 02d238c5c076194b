"""TAB in a shell, as click asks for it: the program itself, with the words typed so far."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memplan.planner.inputs.models import names
from memplan.planner.tables.gpus import gpus

ROOT = Path(__file__).parent.parent


def completed(*words: str) -> list[str]:
    """What bash is offered after these words, the last of which is being typed."""
    line = {"COMP_WORDS": " ".join(("memplan", *words)), "COMP_CWORD": str(len(words))}
    done = subprocess.run(
        [sys.executable, "-m", "memplan"],
        env={**os.environ, **line, "_MEMPLAN_COMPLETE": "bash_complete"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("llama-3.1",), [name for name in names() if name.startswith("llama-3.1")]),
        (("llama-7b", "--gpu", "h"), [name for name in gpus() if name.startswith("h")]),
        (("fit", "llama-7b", "--method", "ql"), ["qlora"]),
        (("compare", "gpt2-x"), [name for name in names() if name.startswith("gpt2-x")]),
        (("llama-7b", "--recipe", "axo"), ["axolotl"]),
        (("comp",), ["compare"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_names_are_completed(words: tuple[str, ...], offered: list[str]):
    assert offered and sorted(item for item in completed(*words) if item != words[-1]) == sorted(offered)


def test_the_script_of_each_shell_is_there():
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run(
            [sys.executable, "-m", "memplan"],
            env={**os.environ, "_MEMPLAN_COMPLETE": f"{shell}_source"},
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=120,
        )
        assert done.returncode == 0 and "_MEMPLAN_COMPLETE" in done.stdout
