"""Continuous integration does not pass for want of a library: skips are counted, and only some reasons are
taken.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def script(path: str) -> ModuleType:
    """A script of this repository that is in no package, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


skips = script(".ci/skips.py")
drift = script("benchmarks/drift.py")

GOOD = (
    "SKIPPED [2] tests/test_report_browser.py:21: chromium and chromium-driver are not installed\n10 "
    "passed, 2 skipped in 3.0s\n"
)


def test_a_missing_browser_may_skip():
    assert skips.wrong(GOOD) == []


def test_a_missing_library_may_not():
    line = (
        "SKIPPED [1] tests/test_trace.py:9: could not import 'transformers': No module named 'transformers'"
    )
    assert skips.wrong(line + "\n" + GOOD.replace("2 skipped", "3 skipped")) == [line]


def test_skips_that_the_log_does_not_list_are_wrong():
    assert skips.wrong("10 passed, 4 skipped in 3.0s") and skips.wrong("pytest did not get so far")


@pytest.mark.parametrize("command", [r"^try=\$\(grep -m1 -E '(.*)'", r'^develop=\$\(grep -m1 -E "(.*)"'])
def test_it_runs_readmes_own_commands(command: str):
    pattern = re.search(command, (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE).group(1)
    assert re.search(pattern, (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE), pattern


def test_hypothesis_runs_the_same_examples_there(tmp_path: Path):
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "test_profile.py").write_text(
        "from hypothesis import settings\ndef test(): assert settings().derandomize\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "test_profile.py"]
    environment = {**os.environ, "CI": "true", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_spec" name="test_sizes[gptj-25]"><failure message="
assert 3 == 4">...</failure></testcase>
<testcase classname="tests.test_spec" name="test_other"/>
<testcase classname="tests.test_spec" name="test_third"><skipped/></testcase>
</testsuite></testsuites>"""


def test_drift_says_what_moved(tmp_path: Path):
    (tmp_path / "report.xml").write_text(REPORT)
    moved = drift.Outcome("test_spec::test_sizes[gptj-25]", "assert 3 == 4")
    assert drift.failures(tmp_path / "report.xml") == ([moved], 2)
    tested = {"torch": "2.13.0", "peft": "0.21.2", "trl": "1.16.0"}
    lines = list(drift.moved_libraries(tested, {"torch": "2.13.0+cpu", "peft": "0.22.0"}))
    assert len(lines) == 1 and lines[0].startswith("peft") and lines[0].endswith("0.21.2 -> 0.22.0")


def test_the_differential_tests_exist():
    assert all((ROOT / "tests" / name).is_file() for name in drift.DIFFERENTIAL)


def dry_part(tmp_path: Path, pip: str, version: str) -> str:
    """What .ci/run's own lines for the dry run print, with this `pip` and this torch/version.py."""
    text = (ROOT / ".ci/run").read_text(encoding="utf-8")
    lines = text[text.index('dry="$scratch/dry"') : text.index("# What the fast tests without torch cover")]
    settings = re.search(r"^cuda_torch=.*\ndry_tests=.*\n", text, re.MULTILINE).group(0)
    python = tmp_path / "python"
    site = "$3/lib/python3/site-packages"
    python.write_text(
        f"#!/bin/sh\nmkdir -p $3/bin {site}/torch\ncat >$3/bin/pip <<'END'\n#!/bin/sh\n{pip}\nEND\n"
        f'chmod +x $3/bin/pip\necho "{version}" >{site}/torch/version.py\n'
    )
    python.chmod(0o755)
    (tmp_path / "dist").mkdir(exist_ok=True)
    (tmp_path / "dev/bin").mkdir(parents=True, exist_ok=True)
    shutil.copy(shutil.which("true"), tmp_path / "dev/bin/python")
    head = (
        f'scratch={tmp_path}; python={python}; part() {{ echo "PART $1 $2 $3"; }}; enter() {{ echo "$2"; }}\n'
    )
    done = subprocess.run(["bash", "-uc", head + settings + lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "dry").exists(), "a gigabyte stays behind"
    return done.stdout


def test_a_cuda_wheel_that_cannot_be_had_is_said_and_fails_nothing(tmp_path: Path):
    said = dry_part(tmp_path, "echo no matching distribution; exit 1", "")
    assert "PART" not in said and "is not to be had: no matching distribution" in said
    said = dry_part(tmp_path, "exit 0", "cuda: str | None = None")
    assert "PART" not in said and "this index has a build without CUDA" in said


def test_the_dry_run_is_tested_on_the_cuda_wheel(tmp_path: Path):
    from memplan.planner.tables.torch_versions import NEWEST, nearest

    said = dry_part(tmp_path, "exit 0", "cuda: str | None = '13.0'")
    tests = re.findall(r"tests/\w+\.py", said)
    assert "PART dry run" in said and len(tests) >= 3 and all((ROOT / name).is_file() for name in tests)
    assert f"MEMPLAN_DRYRUN_PYTHON='{tmp_path}/dry/bin/python'" in said
    version = re.search(r"^cuda_torch=(\S+)", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)
    assert nearest(version.group(1)) == NEWEST
