"""What contributors and users of the documents read is true: paths, tests, schemas, forms, workflows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FOLDERS = ("memplan", "planner", "profiler", "validate")


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def forms() -> dict[str, str]:
    return {
        path.stem: path.read_text(encoding="utf-8") for path in (ROOT / ".github/ISSUE_TEMPLATE").iterdir()
    }


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/schemas.md"])
def test_every_path_that_a_page_names_exists(page: str):
    known = re.compile(r"(planner|profiler|validate|memplan|tests|docs|benchmarks|\.github|\.ci)/[\w./-]*")
    words = [word for quoted in re.findall(r"`([^`]+)`", text(page)) for word in quoted.split()]
    paths = [word for word in words if known.fullmatch(word)]
    links = [(ROOT / page).parent / link for link in re.findall(r"\]\(([^):#]+)\)", text(page))]
    missing = [path for path in paths if "NAME" not in path and not (ROOT / path).exists()]
    assert missing == [] and [link for link in links if not link.exists()] == []


def test_contributing_is_one_page_and_has_every_kind_of_addition():
    page = text("CONTRIBUTING.md")
    assert len(page.splitlines()) <= 80
    kinds = ("model", "model family", "optimizer", "GPU", "recipe", "CUDA kernel", "claim", "measurement")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert not [kind for kind in kinds if not any(kind in row for row in rows)]
    assert text(".ci/run").count("ruff' check") == 1 and "`ruff format --check`" in page


def test_security_invents_no_address():
    assert not re.search(r"https?://|\S+@\S+\.\S+", text("SECURITY.md"))


def test_the_schema_page_lists_every_schema_where_it_is_defined():
    written = re.compile(r'"(memplan\.[a-z]+/\d+)')
    sources = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    used = {name for path in sources for name in written.findall(path.read_text(encoding="utf-8"))}
    rows = dict(
        re.findall(r"^\| `(memplan\.[a-z]+/\d+)` \|.*\| `([^`]+)` \|$", text("docs/schemas.md"), re.M)
    )
    assert rows.keys() == used
    assert not [name for name, path in rows.items() if f'"{name}"' not in text(path)]


def test_the_form_of_a_wrong_prediction_asks_for_what_is_needed():
    form = yaml.safe_load(forms()["wrong-prediction"])
    needed = {entry["id"] for entry in form["body"] if entry.get("validations", {}).get("required")}
    assert {"command", "versions", "gpu", "measured"} <= needed
    assert form["name"] == "My prediction was wrong"


@pytest.mark.parametrize("name", ["wrong-prediction", "measurement"])
def test_a_form_has_what_the_host_requires_of_one(name: str):
    form = yaml.safe_load(forms()[name])
    assert (
        form["name"] and form["description"] and len({entry["id"] for entry in form["body"] if "id" in entry})
    )
    assert all(entry["type"] == "markdown" or entry["attributes"]["label"] for entry in form["body"])


def test_workflows_run_the_scripts_of_this_repository():
    steps = {
        path.stem: " ".join(
            step.get("run", "")
            for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
            for step in job["steps"]
        )
        for path in (ROOT / ".github/workflows").iterdir()
    }
    assert steps["ci"].split() == [".ci/run"] and "python benchmarks/drift.py" in steps["newest"]


def test_hooks_bring_no_version_of_their_own():
    config = yaml.safe_load(text(".pre-commit-config.yaml"))
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    entries = {hook["entry"].split(" ")[0] for repo in config["repos"] for hook in repo["hooks"]}
    assert entries <= {"ruff", "git", "python"}
