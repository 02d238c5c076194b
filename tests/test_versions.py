"""Drift is seen before it hurts: constraints, the tested range, newer installed libraries, names that
libraries are about to drop, and one version number of our own.
"""

from __future__ import annotations

import ast
import re
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import memplan
from memplan.planner.tables import tested_versions
from memplan.planner.tables.tested_versions import TESTED, installed_versions, is_newer, newer_than_tested

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def requirements() -> dict[str, Requirement]:
    project = PROJECT["project"]
    lines = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    found = {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}
    return {name: requirement for name, requirement in found.items() if name != "memplan"}


def test_every_requirement_has_a_constraint_that_it_admits():
    pinned = constraints()
    for name, requirement in requirements().items():
        assert pinned[name] in requirement.specifier, f"{requirement} and constraints.txt: {pinned[name]}"
    assert not [version for version in pinned.values() if "+" in version], "a build of one index only"


def test_constraints_are_closed():
    """What a constrained library needs on this platform is constrained too: nothing is left to the day."""
    needed = set()
    for name in constraints():
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        wanted = [Requirement(line) for line in lines]
        needed |= {
            canonicalize_name(r.name) for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})
        }
    accelerators = ("nvidia-", "cuda-", "triton")  # torch's CUDA build names one version of each itself
    assert not {name for name in needed - constraints().keys() if not name.startswith(accelerators)}


def test_the_packaged_range_is_the_projects():
    assert {name: tuple(pair) for name, pair in PROJECT["tool"]["memplan"]["tested"].items()} == TESTED


@pytest.mark.parametrize("name", TESTED)
def test_the_tested_range_ends_where_the_requirement_and_the_constraint_say(name: str):
    oldest, newest = TESTED[name]
    assert str(requirements()[name].specifier) == f">={oldest}"
    assert constraints()[name] == newest


@pytest.mark.parametrize(
    ("version", "newer"),
    [
        ("2.13.0", False),
        ("2.13.0+cpu", False),
        ("2.13", False),
        ("2.9.1", False),
        ("2.13.1", True),
        ("2.14.0.dev20261101+cu130", True),
        ("3", True),
        ("unknown", False),
    ],
)
def test_release_numbers_decide_what_is_newer(version: str, newer: bool):
    assert is_newer(version, "2.13.0") is newer


def test_the_installed_versions_are_those_that_the_metadata_has():
    found = installed_versions()
    for name in TESTED:
        try:
            assert found.get(name) == metadata.version(name)
        except metadata.PackageNotFoundError:
            assert name not in found


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that alone is looked through for installed libraries."""
    monkeypatch.setattr(
        tested_versions, "installed_versions", lambda: dict(tested_versions._installed([str(tmp_path)]))
    )
    return tmp_path


def test_a_newer_library_is_one_line_of_the_prediction(installed: Path):
    assert memplan.plan("gpt2").warnings == ()
    (installed / "Transformers-5.99.0.dist-info").mkdir()
    (installed / "peft-0.21.2.dist-info").mkdir()
    (line,) = memplan.plan("gpt2").warnings
    newest = TESTED["transformers"][1]
    assert "transformers 5.99.0" in line and f"up to {newest}" in line and "--engine trace" in line
    assert "peft" not in line and list(newer_than_tested("trace")) != [line]


def test_one_version_number():
    assert "version" in PROJECT["project"]["dynamic"] and "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "memplan.planner.__version__"
    written = re.compile(r"""^__version__\s*=""", re.MULTILINE)
    folders = ("memplan", "planner", "profiler", "validate")
    files = {path.resolve() for folder in folders for path in (ROOT / folder).rglob("*.py")}
    assert [path for path in files if written.search(path.read_text(encoding="utf-8"))] == [
        (ROOT / "planner/__init__.py").resolve()
    ]


def test_renamed_takes_either_name():
    from memplan.planner.run.renamed import argument, renamed

    old, new = SimpleNamespace(gradient_checkpointing=1), SimpleNamespace(activation_checkpointing=2)
    assert (renamed(old, "activation_checkpointing"), renamed(new, "activation_checkpointing")) == (1, 2)
    assert argument("cache", ("input_ids", "past_key_values")) == "past_key_values"
    assert argument("cache", ("input_ids", "cache")) == "cache"
    with pytest.raises(AttributeError, match="past_key_values"):
        renamed(old, "cache")


def uses(source: str, names: set[str]) -> set[str]:
    """Those of `names` that a program reads as attributes or passes as keyword arguments."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        elif isinstance(node, ast.Call):
            found |= {word.arg for word in node.keywords}
    return found & names


def test_no_source_uses_a_name_that_warns():
    from memplan.planner.run.renamed import RENAMED

    names = set(RENAMED.values())
    folders = ("planner/run", "planner/trace", "profiler", "tests")
    sources = {
        path: path.read_text(encoding="utf-8") for folder in folders for path in (ROOT / folder).rglob("*.py")
    }
    allowed = {Path(__file__), *(ROOT / "tests/data").rglob("*.py")}  # scripts as people have them are read
    found = {path.name: uses(text, names) for path, text in sources.items() if path not in allowed}
    assert {name: used for name, used in found.items() if used} == {}
    assert uses("model.gradient_checkpointing_enable(); f(past_key_values=c)", names) == {
        "gradient_checkpointing_enable",
        "past_key_values",
    }
