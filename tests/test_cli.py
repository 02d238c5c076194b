"""The command line: where options stand, what names mean, exit codes; a mistake is one message and nothing on
standard output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from memplan.cli import main as frame
from memplan.cli.main import run
from memplan.cli.options import FIELD_OF, given_fields, plan_options, read_value
from memplan.planner.inputs.setup import FIELDS, resolve
from memplan.planner.tables.errors import UsageError

ROOT = Path(__file__).parent.parent


def parsed(*args: str) -> dict[str, object]:
    """What the shared options make of a command line."""
    seen: dict[str, object] = {}

    @click.command()
    @plan_options
    def command(**options: object) -> None:
        seen.update(given_fields(options))

    command.main(list(args), standalone_mode=False)
    return seen


def test_every_option_sets_a_field_of_setup():
    assert set(FIELD_OF.values()) <= set(FIELDS)
    words = [
        "--method",
        "qlora",
        "--recipe",
        "raw",
        "--task",
        "classify",
        "--batch",
        "2",
        "--seq",
        "512",
        "--rank",
        "8",
        "--targets",
        "q_proj,v_proj",
        "--dtype",
        "float16",
    ]
    words += [
        "--autocast",
        "none",
        "--optimizer",
        "sgd",
        "--attention",
        "eager",
        "--loss",
        "chunked",
        "--padded",
        "--load",
        "random",
        "--gpu",
        "t4",
    ]
    words += [
        "--gpus",
        "2",
        "--parallel",
        "ddp",
        "--device",
        "cpu",
        "--no-checkpointing",
        "--images",
        "1@640x480",
        "--set",
        "double-quant=false",
    ]
    fields = parsed(*words)
    assert set(fields) == {*FIELD_OF.values(), "double_quant"}
    assert (fields["micro_batch"], fields["padded"], fields["checkpointing"], fields["double_quant"]) == (
        2,
        True,
        "none",
        False,
    )


def test_what_was_not_given_is_not_said():
    assert parsed() == {}
    assert parsed("--packed", "--checkpointing") == {"padded": False, "checkpointing": "non_reentrant"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("8", 8),
        ("0.1", 0.1),
        ('["a"]', ["a"]),
        ("q_proj,v_proj", "q_proj,v_proj"),
        ("NaN", "NaN"),
        ("[" * 9999, "[" * 9999),
        ("", ""),
    ],
)
def test_values_of_set(text: str, value: object):
    assert read_value(text) == value


@pytest.mark.parametrize("name", ["torch=2.12", "transformers=4.48"])
def test_a_release_is_a_name_and_no_number(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """JSON and YAML read 2.12 as a number; what the setup holds is the release."""
    field, _, release = name.partition("=")
    (tmp_path / "setup.yaml").write_text(f"{field}: {release}")
    for given in (["--set", name], ["--setup", str(tmp_path / "setup.yaml")]):
        assert run(["gpt2", "--method", "lora", *given, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["setup"][field] == release
    assert getattr(resolve({field: float(release)}), field) == release


@pytest.mark.parametrize("assignment", ["rank", "=8", " = "])
def test_set_needs_key_and_value(assignment: str):
    with pytest.raises(UsageError, match="KEY=VALUE"):
        parsed("--set", assignment)


MISTAKES = {
    "unknown model": ["llama-7"],
    "unknown gpu": ["llama-7b", "--gpu", "rtx-9999"],
    "unknown method": ["llama-7b", "--method", "qlorra"],
    "unknown recipe": ["llama-7b", "--recipe", "hff"],
    "unknown optimizer": ["llama-7b", "--optimizer", "adamv"],
    "unknown target": ["llama-7b", "--targets", "q_prj"],
    "unknown option": ["llama-7b", "--metod", "qlora"],
    "unknown setting": ["llama-7b", "--set", "rnak=8"],
    "unknown engine": ["llama-7b", "--engine", "magic"],
    "batch zero": ["llama-7b", "--batch", "0"],
    "batch negative": ["llama-7b", "--batch", "-1"],
    "batch fraction": ["llama-7b", "--batch", "1.5"],
    "batch word": ["llama-7b", "--batch", "two"],
    "batch nan": ["llama-7b", "--batch", "nan"],
    "batch huge": ["llama-7b", "--batch", "1" + "0" * 30],
    "rank zero": ["llama-7b", "--rank", "0"],
    "string where a number belongs": ["llama-7b", "--set", "rank=eight"],
    "nan by set": ["llama-7b", "--set", "dropout=NaN"],
    "contradiction": ["llama-7b", "--optimizer", "adamw_torch_fused", "--set", "optimizer_mode=loop"],
    "paper without qlora": ["llama-7b", "--recipe", "paper", "--method", "lora"],
    "more positions than learned": ["gpt2", "--seq", "4096"],
    "gpus without parallel": ["llama-7b", "--gpus", "8"],
    "two models": ["llama-7b", "gpt2"],
    "command after the model": ["--method", "qlora", "list", "models"],
    "missing path": ["./no/such/config.json"],
    "folder without config": ["./tests"],
    "folder's bare name": ["tests"],
    "targets of nothing": ["llama-7b", "--targets", ","],
    "more layers than there are": ["llama-7b", "--method", "freeze", "--set", "trainable_layers=33"],
    "adalora that grows": [
        "llama-7b",
        "--method",
        "adalora",
        "--set",
        "init_rank=4",
        "--set",
        "target_rank=8",
    ],
    "methods of nothing": ["compare", "llama-7b", "--methods", ","],
    "a folder as output of fit": [
        "fit",
        "llama-7b",
        "--gpu",
        "t4",
        "--method",
        "qlora",
        "--emit",
        "trl",
        "-o",
        "tests",
    ],
    "output without emit": ["fit", "llama-7b", "--gpu", "t4", "-o", "x.yaml"],
    "a folder as page": ["report", "llama-7b", "-o", "tests"],
    "a picture in no folder": ["report", "llama-7b", "--png", "no/such/folder/x.png"],
    "a GPU without a price": ["fit", "tests/data/jobs_bad_price.yaml"],
    "nothing after two hyphens": ["--"],
    "a tiny budget": ["llama-7b", "--gpu", "1KiB"],
    "null character": ["llama\x00"],
    "empty model": [""],
    "missing setup file": ["llama-7b", "--setup", "no-such.yaml"],
    "missing adapter file": ["llama-7b", "--adapter", "no-such.json"],
    "no model": ["plan"],
    "list of nothing": ["list"],
    "list of what is not there": ["list", "cards"],
}


@pytest.mark.parametrize("args", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_exit_two_and_one_message(
    args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    assert run(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("memplan: ") and err.count("\n") == 1 and len(err) < 600


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["llama-7b", "--gpu", "rtx-409"], "rtx-4090"),
        (["llama-7b", "--method", "qlorra"], "qlora"),
        (["llama-7b", "--set", "rnak=8"], "rank"),
        (["llama-7b", "--metod", "x"], "--method"),
        (["lama-7b"], "llama-7b"),
        (
            ["llama-7b", "--batch", "0"],
            "micro_batch (--batch) is 0: expected a whole number from 1 to 10,000,000",
        ),
        (
            ["llama-7b", "--dtype", "fp8"],
            "weight_dtype (--dtype) is 'fp8': expected bfloat16, float16 or float32",
        ),
        (["llama-7b", "--set", "dropout=2"], "dropout is 2: expected a number from 0 to less than 1"),
        (["llama-7b", "--set", "double_quant=maybe"], "double_quant is 'maybe': expected true or false"),
        (["llama-7b", "--set", "targets=3"], "targets is 3: expected module names"),
    ],
)
def test_a_message_names_the_nearest_legal_name(
    args: list[str], names: str, capsys: pytest.CaptureFixture[str]
):
    run(args)
    assert names in capsys.readouterr().err


def test_list_prints_every_table(capsys: pytest.CaptureFixture[str]):
    for what, name in {
        "models": "llama-2-7b",
        "gpus": "rtx-4090",
        "methods": "adalora",
        "optimizers": "paged_adamw_8bit",
        "recipes": "hf",
    }.items():
        assert run(["list", what]) == 0
        text = capsys.readouterr().out
        assert name in text and max(map(len, text.splitlines())) <= 80
        assert run(["list", what, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["schema"] == "memplan.list/1" and name in [row["name"] for row in document[what]]


def test_help_and_version(capsys: pytest.CaptureFixture[str]):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("memplan 0.")
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name}" in text for name in frame.COMMANDS)
    assert run(["llama-7b", "--help"]) == 0
    assert "--double" not in capsys.readouterr().out


def test_a_defect_is_not_does_not_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(frame.COMMANDS, "list", "memplan.cli.no_such_module:command")
    assert run(["list", "models"]) == frame.BUG
    assert "bug in memplan" in capsys.readouterr().err


def test_control_c_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("memplan.cli.list.TABLES", {"models": interrupted})
    assert run(["list", "models"]) == 130
    assert capsys.readouterr().err.strip() == "memplan: interrupted"


def test_a_closed_pipe_is_quiet():
    process = subprocess.Popen(
        [sys.executable, "-m", "memplan", "list", "gpus", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == frame.BROKEN_PIPE
    assert process.stderr.read() == b""


def test_an_ascii_pipe_gets_ascii():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-m", "memplan", "list", "recipes"],
        cwd=ROOT,
        capture_output=True,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 0
    done.stdout.decode("ascii")


def test_the_bare_program_shows_its_help_where_messages_go(capsys):
    assert run([]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("Usage: memplan") and "\n  fit " in said.err


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in frame.COMMANDS)])
def test_no_help_is_wider_than_80_columns(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(words) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []
