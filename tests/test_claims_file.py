"""A person's own claims file: it works as the shipped one does, and every mistake names the file, the line,
the key and the value.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from memplan.cli.main import run
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError
from memplan.profiler.facts.table import FACTS
from memplan.profiler.record import MeasuredMoment, MeasuredPeak, Measurement, save_in
from memplan.validate.checks import CHECKS, METRICS
from memplan.validate.claims import load
from memplan.validate.claimsfile import RELATIONS, UNITS
from memplan.validate.quantities import QUANTITIES

GOOD = """
[[claim]]
id = "mine"
reading = "7B LoRA fits my GPU"
sources = [{ document = "blog", quote = "fits" }]
[[claim.part]]
what = "fits"
check = "fits"
model = "llama-7b"
gpu = "rtx-4090"
setup = { method = "lora", checkpointing = "non_reentrant" }
claimed = true

[[claim]]
id = "second"
reading = "one is one"
[[claim.part]]
what = "one"
check = "arithmetic"
expression = "1"
claimed = 1
"""


@pytest.fixture
def written(tmp_path):
    def write(text: str):
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_persons_own_file_works_as_the_shipped_one(written, capsys):
    assert run(["claims", str(written(GOOD)), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [c["verdict"] for c in document["claims"]] == ["supported", "supported"] and document[
        "file"
    ] == "mine.toml"


def test_a_refuted_claim_is_exit_0(written, capsys):
    assert run(["claims", str(written(GOOD.replace("claimed = 1", "claimed = 2")))]) == 0
    assert "refuted" in capsys.readouterr().out


@pytest.mark.parametrize(
    "old, new, line, words",
    [
        ("gpu = ", "gpuu = ", 10, "gpuu: unknown key: did you mean gpu"),
        (
            'check = "fits"',
            'check = "fit"',
            8,
            "'fit' is not a check kind: expected one of arithmetic, dry_run",
        ),
        ("claimed = true", "", 6, "claimed: is missing here"),
        ("claimed = 1", "claimed = [1, 2]", 21, 'a list needs relation = "between"'),
        ('expression = "1"', "", 17, "expression: is missing here"),
        ("claimed = 1", 'claimed = 1\nunit = "furlongs"', 22, "'furlongs' is not a unit"),
        ("claimed = 1", "claimed = 1\nunit = [[1]]", 22, "[1] is not a unit"),
        ("claimed = 1", "claimed = 1\nunit = [{a = 1}]", 22, "{'a': 1} is not a unit"),
        ("claimed = 1", "claimed = 1\nunit = []", 22, "is an empty list: expected one or more of"),
        ("claimed = 1", 'claimed = 1\nrelation = "~"', 22, "'~' is not a relation"),
        ("claimed = 1", 'claimed = "a"\nrelation = "<"', 21, "relation '<' needs a number"),
        ('reading = "one is one"', "reading = 1", 16, "1 is of type int, expected str"),
        ('id = "second"', 'id = "mine"', 15, "'mine' is used twice"),
        (
            "claimed = true",
            'claimed = true\nover = { key = "model" }',
            13,
            "needs either range = [low, high] or values",
        ),
        (
            "claimed = true",
            'claimed = true\nover = { key = "setup.rank", range = [9, 3] }',
            13,
            "two integers, 0 < low < high",
        ),
    ],
)
def test_mistakes_of_form_name_file_line_and_key(written, old, new, line, words):
    with pytest.raises(UsageError) as caught:
        load(written(GOOD.replace(old, new, 1)))
    assert f"mine.toml, line {line}: " in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize(
    "old, new, line, words",
    [
        ('"rtx-4090"', '"rtx-4091"', 10, "unknown GPU 'rtx-4091'"),
        ('"llama-7b"', '"llama-8z"', 9, "unknown model 'llama-8z'"),
        ("method = ", "methodd = ", 11, "unknown setting 'methodd': did you mean method"),
        ('"non_reentrant"', '"sometimes"', 11, "'sometimes'"),
        ('expression = "1"', 'expression = "import os"', 20, "neither a number nor"),
        ('gpu = "rtx-4090"', "", 6, "needs a model and a gpu"),
    ],
)
def test_mistakes_of_content_name_the_claim_the_part_and_the_line(written, capsys, old, new, line, words):
    assert run(["claims", str(written(GOOD.replace(old, new, 1)))]) == 2
    message = capsys.readouterr().err
    assert (
        words in message
        and "claim '" in message
        and f"line {line}: " in message
        and "Traceback" not in message
    )


@pytest.mark.parametrize(
    "text, words",
    [
        ("a = [", "not valid TOML"),
        ("", "no [[claim]]"),
        ('schema = "memplan.claimsfile/9"', "this version reads no other"),
        ("claims = 1", "unknown key"),
    ],
)
def test_files_that_are_no_claims_file(written, text, words):
    with pytest.raises(UsageError, match=words.replace("[", r"\[")):
        load(written(text))


def test_a_file_that_is_not_there_and_a_claim_that_is_not_there(tmp_path, capsys):
    assert run(["claims", str(tmp_path / "none.toml")]) == 2
    assert run(["claims", "--only", "9,seventy-one"]) == 2
    assert "unknown claim 'seventy-one'" in capsys.readouterr().err


def recorded(method: str, seconds: float) -> Measurement:
    setup = resolve({"method": method, "checkpointing": "non_reentrant"})
    peak = MeasuredPeak("backward", 1, 1, 1)
    return Measurement(
        f"llama-2-7b {method}",
        {"name": "llama-2-7b", "config": {}},
        setup,
        {"gpu": "NVIDIA H200", "versions": {}},
        "ok",
        3,
        peak=peak,
        step_peak=peak,
        moments=(MeasuredMoment("backward", 1),),
        step_seconds=(seconds, seconds, seconds),
    )


@pytest.mark.parametrize("slower, verdict", [(1.35, "supported"), (1.10, "refuted")])
def test_a_claim_of_time_becomes_checkable_once_the_records_exist(tmp_path, capsys, slower, verdict):
    save_in(recorded("lora", 1.0), tmp_path)
    save_in(recorded("qlora", slower), tmp_path)
    assert run(["claims", "--only", "63", "--measurements", str(tmp_path), "--json"]) == 0
    claim = json.loads(capsys.readouterr().out)["claims"][0]
    assert claim["verdict"] == "depends"  # runs that others published differ among themselves
    assert claim["parts"][0]["verdict"] == verdict and claim["parts"][0]["found"] == pytest.approx(
        100 * (slower - 1)
    )


def test_chinese_and_conflicts_on_the_command_line(capsys):
    assert run(["claims", "--only", "49,37", "--lang", "zh"]) == 0
    text = capsys.readouterr().out
    assert "不成立" in text and "2 条论断" in text
    assert re.search(r"秩到[\d,]+不?成立", "".join(text.split()))
    assert run(["claims", "--conflicts"]) == 0
    assert "contradict" in capsys.readouterr().out


def test_the_format_is_documented():
    """docs/claims.md names every kind of check, key, unit, quantity and library fact."""
    text = (Path(__file__).parent.parent / "docs" / "claims.md").read_text(encoding="utf-8")
    names = [*CHECKS, *QUANTITIES, *FACTS, *filter(None, UNITS), *METRICS, *RELATIONS]
    assert [name for name in names if name not in text] == []
