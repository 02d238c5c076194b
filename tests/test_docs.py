"""README and docs cannot rot: the outputs shown are regenerated and compared, the command reference is
generated.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from memplan.cli.main import COMMANDS, group, run
from memplan.render import cli_docs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shown_outputs() -> list[tuple[str, str]]:
    """(command, output) of every ```console block of README: a line '$ memplan ...' and what stands under
    it.
    """
    blocks = re.findall(r"^```console\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    pairs = []
    for block in blocks:
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            pairs.append((command, output.strip("\n")))
    return pairs


def test_the_first_screen_shows_the_picture_the_command_and_what_it_prints():
    """40 lines of at most 80 columns, the picture's link aside."""
    (shown, output), *_ = shown_outputs()
    lines = README.splitlines()
    first = lines[: lines.index(output.splitlines()[-1]) + 1]
    assert len(first) <= 40 and all(len(line) <= 80 for line in first if not line.startswith("!["))
    picture = next(at for at, line in enumerate(first) if line.startswith("!["))
    assert (
        picture < first.index("pip install . && memplan llama-7b --method qlora") < first.index(f"$ {shown}")
    )


def test_contributors_find_their_command_under_contributing():
    _, _, contributing = README.partition("\n## Contributing\n")
    assert "\npip install -e '.[dev]' -c constraints.txt && pytest\n" in contributing


@pytest.mark.parametrize(
    ("command", "output"), shown_outputs(), ids=[command for command, _ in shown_outputs()]
)
def test_readme_shows_what_the_program_prints(
    command: str, output: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    command, _, pipe = command.partition(" | head -n ")
    words = shlex.split(command)
    assert words[0] == "memplan"
    run(words[1:])
    lines = capsys.readouterr().out.splitlines()
    assert "\n".join(lines[: int(pipe) if pipe else None]).strip("\n") == output, (
        f"run `{command} > ...` and put its output into README.md"
    )


def test_command_reference_is_not_stale():
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == cli_docs.page(), (
        "run: python -m memplan.render.cli_docs > docs/cli.md"
    )


def test_every_command_but_those_that_make_pages_answers_a_script():
    without = set()
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        if not any("--json" in parameter.opts for parameter in command.params):
            without.add(name)
    assert without == {"report", "ui"}
    assert "Every command except `report` and `ui`, which write pages, supports `--json`." in README


def test_readme_names_every_command_and_every_linked_file_exists():
    for name in COMMANDS:
        assert f"memplan {name}" in README, f"README does not mention `memplan {name}`"
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), f"README links to {target}"


def test_the_architecture_names_every_package_and_only_what_exists():
    import tomllib

    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "packages"
    ]
    folders = [name.removeprefix("memplan.").replace(".", "/") for name in packages]
    missing = [folder for folder in folders if folder not in page]
    assert not missing, f"docs/architecture.md does not mention {missing}"
    for path in re.findall(
        r"`((?:planner|profiler|validate|memplan|benchmarks|tests|measurements)/[\w/.]*)`", page
    ):
        assert (ROOT / path).exists(), f"docs/architecture.md names {path}"


def test_the_page_of_peers_is_what_its_scores_say():
    """Every cell of docs/peers.md comes out of the renderer, from the scores that the command keeps."""
    done = subprocess.run(
        [sys.executable, "benchmarks/peers.py", "--page"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    page = (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
    assert page == done.stdout, "run: python benchmarks/peers.py --page > docs/peers.md"
    scores = json.loads((ROOT / "benchmarks" / "peers.json").read_text(encoding="utf-8"))
    assert {f"memplan {engine}" for engine in ("formula", "trace")} < {
        row["name"] for row in scores["scores"]
    }
    for row in scores["scores"]:
        assert f"| {row['name']} | {row['answered']} |" in page
    trace, formula = (
        {row["name"]: row for row in scores["scores"]}[f"memplan {engine}"] for engine in ("trace", "formula")
    )
    told = (formula["median"], formula["worst"], trace["worst"])
    assert all(f"{share * 100:.1f} %" in README for share in told), (
        "README tells other errors than docs/peers.md"
    )
