"""`memplan llama-7b --method qlora` imports none of the heavy libraries: proved in a process of its own, and
the proof can fail.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "huggingface_hub",
    "yaml",
    "numpy",
    "matplotlib",
    "asyncio",
)
PROBE = """
import sys
from memplan.cli.main import run
{before}
code = run({args!r})
found = sorted(set({heavy!r}) & set(sys.modules))
print("heavy:", ",".join(found), file=sys.stderr)
sys.exit(code)
"""


def heavy_modules(args: list[str], before: str = "", heavy: tuple[str, ...] = HEAVY) -> set[str]:
    """The heavy modules that one command line has imported by its end."""
    probe = PROBE.format(before=before, args=args, heavy=heavy)
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(filter(None, done.stderr.rpartition("heavy: ")[2].strip().split(",")))


@pytest.mark.parametrize(
    "args",
    [
        ["llama-7b", "--method", "qlora"],
        ["llama-7b", "--method", "full", "--gpu", "h200", "--json"],
        ["list", "models"],
        ["list", "gpus", "--json"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_start_up_is_light(args: list[str]):
    assert heavy_modules(args) == set()


def test_a_setup_is_checked_by_pydantic_only_where_a_person_wrote_values():
    assert heavy_modules(["llama-7b", "--method", "qlora"], heavy=("pydantic",)) == set()
    assert heavy_modules(["llama-7b", "--batch", "2"], heavy=("pydantic",)) == {"pydantic"}


def test_the_check_can_fail():
    assert heavy_modules(["list", "recipes"], before="import numpy") == {"numpy"}


def test_importing_memplan_is_light():
    probe = (
        f"import sys, memplan; print(sorted(set({(*HEAVY, 'pydantic', 'rich', 'click')!r}) & "
        "set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


COLLECTIONS = """
import gc, sys
from memplan.cli.main import main
before = sum(each["collections"] for each in gc.get_stats())
try:
    main({args!r})
finally:
    after = sum(each["collections"] for each in gc.get_stats())
    print(after - before, gc.get_threshold()[0], file=sys.stderr)
"""


@pytest.mark.parametrize("model", ["llama-7b", "llama-3.1-405b"])
def test_an_answer_is_given_without_a_search_for_garbage(model: str):
    """One walks every object that there is: a tenth of the time of an answer."""
    probe = COLLECTIONS.format(args=[model, "--method", "qlora"])
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    collections, threshold = map(int, done.stderr.split())
    assert collections == 0
    assert 0 < threshold < 10**6  # a long command's garbage is bounded
