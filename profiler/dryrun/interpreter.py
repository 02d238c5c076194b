"""The Python that runs the program: where its torch is, and whether a dry run can use it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memplan.planner.tables.errors import UsageError, shorten

OLDEST = (2, 9)
MAKE = (
    "  python3 -m venv cuda-env\n"
    "  cuda-env/bin/pip install --no-deps torch && cuda-env/bin/pip install 'setuptools<82' filelock "
    "typing-extensions sympy networkx jinja2 fsspec numpy"
)
"""The two lines that make an environment: none of NVIDIA's runtime packages is needed."""
_PACKAGES = re.compile(r"/(site|dist)-packages/?$")
_ASK = """
import importlib.util, json, sys
spec = importlib.util.find_spec("torch")
print(json.dumps([spec.origin if spec else None, sys.version_info[:2], sys.path]))
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """`path`: the executable; `sites`: the folder that holds torch, then every other folder of packages on
    its path; torch's versions as its file states them; `python`: major and minor version.
    """

    path: Path
    sites: tuple[Path, ...]
    torch: str
    cuda: str
    python: tuple[int, int]


def find_interpreter(named: str | None) -> Interpreter:
    """The interpreter of that path, or the running one. UsageError unless its torch is a CUDA build."""
    found = shutil.which(named) if named else sys.executable
    if not found:
        raise UsageError(f"--python {shorten(named or '')}: there is no such executable")
    path = Path(os.path.abspath(found))
    origin, python, searched = _ask(path)
    if origin is None:
        raise UsageError(
            f"{path} has no torch. An environment for dry runs:\n{MAKE}\nthen: --python cuda-env/bin/python"
        )
    site = Path(origin).parent.parent
    text = (Path(origin).parent / "version.py").read_text(encoding="utf-8")
    version = _value(text, "__version__") or "unknown"
    cuda = _value(text, "cuda")
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if cuda is None:
        raise UsageError(
            f"{path} has torch {version}, a build without CUDA: a dry run needs the CUDA build (no GPU "
            f"is needed). An environment for dry runs:\n{MAKE}\nthen: --python cuda-env/bin/python"
        )
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST:
        raise UsageError(f"{path} has torch {version}: a dry run needs {OLDEST[0]}.{OLDEST[1]} or later")
    others = [Path(entry) for entry in searched if _PACKAGES.search(entry) and os.path.isdir(entry)]
    sites = tuple(dict.fromkeys([site, *others]))
    return Interpreter(path, sites, version, cuda, (python[0], python[1]))


def _ask(path: Path) -> tuple[str | None, list[int], list[str]]:
    """Where an interpreter has its torch (None: nowhere), its version, where it looks for modules."""
    try:
        done = subprocess.run(
            [str(path), "-c", _ASK], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
        origin, python, searched = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        raise UsageError(f"{path} is no Python interpreter that runs here") from None
    return origin, python, searched


def _value(text: str, name: str) -> str | None:
    """What torch's version.py assigns to a name, as text."""
    match = re.search(rf"^{name}\s*(?::[^=]+)?=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None


def resolve(command: Sequence[str], interpreter: Interpreter) -> list[str]:
    """The command with its first word found: `python` is the interpreter, other words are looked for beside
    it first.
    """
    first, rest = command[0], list(command[1:])
    if re.fullmatch(r"python[\d.]*", os.path.basename(first)):
        return [str(interpreter.path), *rest]
    if first.endswith(".py") and os.path.isfile(first):
        return [str(interpreter.path), first, *rest]
    found = shutil.which(first, path=f"{interpreter.path.parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise UsageError(f"no such command: {shorten(first)} (looked beside {interpreter.path} and on PATH)")
    return [found, *rest]
