"""What the newest releases of the libraries move: the differential tests, run against them.

    python benchmarks/drift.py [--here] [--keep DIR] [TEST...]

Makes a virtual environment, installs memplan and its extra `dev` without constraints.txt, runs the tests that
compare the formula, the trace and real steps (DIFFERENTIAL, or those named), and prints which libraries are
other than those of constraints.txt, and every test that fails with the line that says by how much. `--here`
skips the environment and takes the libraries of this interpreter. Exit code 1 where a test fails, 2 where
nothing could be installed or no test ran. .github/workflows/newest.yml runs it every week.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIFFERENTIAL = (
    "test_spec.py",  # sizes read from a config == the model that transformers builds
    "test_catalog.py",  # the same for every entry of the catalog
    "test_parameters.py",  # rows of weights == the parameters that peft and bitsandbytes make
    "test_optimizers.py",  # states == `optimizer.state` after a step
    "test_formula_sweep.py",  # formula == trace over random setups
    "test_trace_architectures.py",  # trace == real steps on a CPU, per architecture
    "test_trace_peft.py",  # the same, per adapter type
    "test_trace_quantized.py",
    "test_trace_trainer.py",  # transformers' and TRL's trainers == the trace's own step
    "test_recipes_stack.py",  # defaults of the recipes == the stacks' own
)
INSTALLED = (
    "import importlib.metadata as m, json;"
    "print(json.dumps({d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}))"
)


@dataclass(frozen=True)
class Outcome:
    """One test that did not pass: its name, and the line of its error that says most."""

    test: str
    line: str


def constraints() -> dict[str, str]:
    """Library -> version of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def moved_libraries(tested: Mapping[str, str], installed: Mapping[str, str]) -> Iterator[str]:
    """A line for each constrained library that is installed in another version, builds ("+cpu") apart."""
    for name, version in sorted(tested.items()):
        found = installed.get(name, version).partition("+")[0]
        if found != version:
            yield f"{name:24} {version:>16} -> {found}"


def failures(report: Path) -> tuple[list[Outcome], int]:
    """What failed in a JUnit report of pytest's, and how many tests ran."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    found = []
    for case in cases:
        for trouble in [*case.findall("failure"), *case.findall("error")]:
            where = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
            found.append(Outcome(where, telling_line(trouble.get("message", ""))))
    return found, len(cases) - sum(case.find("skipped") is not None for case in cases)


def telling_line(message: str) -> str:
    """The first line of an error's text that is not empty, at most 200 characters."""
    return next((line.strip()[:200] for line in message.splitlines() if line.strip()), "no message")


def environment(folder: Path) -> Path:
    """The Python of a new virtual environment with memplan's extra `dev` at its newest."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--upgrade", "--upgrade-strategy", "eager"]
    subprocess.run([*install, "-e", f"{ROOT}[dev]"], check=True)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description="What the newest releases of the libraries move.")
    parser.add_argument(
        "tests", nargs="*", help="files or node ids of tests (default: the differential ones)"
    )
    parser.add_argument("--here", action="store_true", help="the libraries of this interpreter")
    parser.add_argument("--keep", type=Path, help="where the virtual environment is made, and stays")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            where = options.keep or Path(scratch) / "venv"
            python = Path(sys.executable) if options.here else environment(where)
            listed = subprocess.run([python, "-c", INSTALLED], check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            print(f"could not be installed: {error}", file=sys.stderr)
            return 2
        tests = options.tests or [f"tests/{name}" for name in DIFFERENTIAL]
        report = Path(scratch) / "report.xml"
        command = [str(python), "-m", "pytest", "-n", "0", f"--junitxml={report}", *tests]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "CI": "true"}, check=False)
        failed, ran = failures(report) if report.exists() else ([], 0)
    print("\nlibraries that are not those of constraints.txt:")
    print("\n".join(moved_libraries(constraints(), json.loads(listed.stdout))) or "none")
    print(f"\n{len(failed)} of {ran} tests moved")
    for outcome in failed:
        print(f"{outcome.test}\n    {outcome.line}")
    return 2 if not ran else int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
