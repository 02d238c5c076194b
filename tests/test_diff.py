"""diff: what moved, by component and tensor; the gate on the command line and in pytest."""

import json
from importlib.metadata import entry_points

import pytest
from click.testing import CliRunner

from memplan.cli.diff import command, read_percent
from memplan.planner.answers.diff import diff
from memplan.planner.formula.engine import plan
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import ToleranceError, UsageError

pytest_plugins = ("pytester",)


def document(**fields):
    return plan(find("gpt2").spec(), resolve({"sequence_length": 256, **fields})).to_document(explain=True)


@pytest.fixture(scope="module")
def small():
    return document(method="lora")


@pytest.fixture(scope="module")
def large():
    return document(method="lora", rank=64, micro_batch=2)


def test_equal_documents_do_not_differ(small):
    found = diff(small, small)
    assert (found.peaks, found.components, found.rows, found.settings, found.grown) == ((), (), (), (), 0.0)


def test_a_key_that_this_version_does_not_know_is_no_difference(small):
    newer = {**small, "setup": {**small["setup"], "key_of_a_newer_version": 3}}
    assert diff(small, newer).settings == ()
    assert [
        name for name, _, _ in diff(small, {**newer, "setup": {**newer["setup"], "rank": 3}}).settings
    ] == ["rank"]


def test_the_numbers_are_the_documents_numbers(small, large):
    found = diff(small, large)
    peak = next(change for change in found.peaks if change.what == ("peak", "device"))
    assert (peak.old, peak.new) == (small["peak"]["device_bytes"], large["peak"]["device_bytes"])
    states = next(
        change for change in found.components if change.what == ("optimizer_step", "optimizer_states")
    )
    assert states.fraction == pytest.approx(3.0, rel=0.01)  # four times the rank
    assert {name for name, _, _ in found.settings} == {"rank", "micro_batch"}
    assert any("lora_A" in " ".join(change.what) for change in found.rows)


def test_rows_of_a_moment_add_up_to_its_difference(small, large):
    found = diff(small, large)
    backward = next(change for change in found.peaks if change.what == ("backward",))
    assert sum(change.moved for change in found.rows if change.what[0] == "backward") == backward.moved


def test_growth_and_shrinking(small, large):
    assert diff(small, large).beyond(0.01) and diff(small, large).grown > 0.01
    assert diff(large, small).beyond(0.0) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ({}, {"schema": "memplan.prediction/1"}, "the first document has schema ''"),
        (
            {"schema": "memplan.prediction/1"},
            {"schema": "memplan.claims/1"},
            "the second document has schema 'memplan.claims/1'",
        ),
        ({"schema": "memplan.prediction/1"}, {"schema": "memplan.measurement/1"}, "two of one kind"),
        ({"schema": "memplan.prediction/2"}, {"schema": "memplan.prediction/2"}, "install a newer memplan"),
    ],
)
def test_documents_that_cannot_be_compared(old, new, message):
    with pytest.raises(UsageError) as caught:
        diff(old, new)
    assert message in str(caught.value)


@pytest.mark.parametrize(("text", "fraction"), [("1%", 0.01), ("0.5 %", 0.005), ("0", 0.0), ("100%", 1.0)])
def test_percentages(text, fraction):
    assert read_percent(text) == fraction


@pytest.mark.parametrize("text", ["1", "one", "-1%", "%", ""])
def test_bad_percentages(text):
    with pytest.raises(UsageError, match="expected a percentage"):
        read_percent(text)


def test_the_gate_names_what_grew(tmp_path, small, large):
    for name, content in (("old", small), ("new", large)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    paths = [str(tmp_path / "old.json"), str(tmp_path / "new.json")]
    shown = CliRunner().invoke(command, paths)
    assert shown.exit_code == 0 and "tensors" in shown.output and "the setups differ" in shown.output
    with pytest.raises(ToleranceError, match=r"grew by .* more than 1% allows; most of all") as caught:
        command.main([*paths, "--fail-over", "1%"], standalone_mode=False)
    assert caught.value.exit_code == 4
    command.main([*reversed(paths), "--fail-over", "1%"], standalone_mode=False)
    assert json.loads(CliRunner().invoke(command, [*paths, "--json"]).output)["schema"] == "memplan.diff/1"


GATED = """
def test_same(memplan_gate):
    assert memplan_gate("tiny", "gpt2", method="lora", sequence_length=128, rank=8).peak.device_bytes > 0

def test_grown(memplan_gate):
    memplan_gate("tiny", "gpt2", method="lora", sequence_length=128, rank=512)
"""


def test_the_pytest_fixture_asks_for_a_baseline_records_it_and_fails_on_growth(pytester):
    installed = any(
        entry.value == "memplan.pytest_plugin" for entry in entry_points(group="pytest11")
    )  # then pytest loads it itself
    plugin = ("-p", "no:cacheprovider", *(() if installed else ("-p", "memplan.pytest_plugin")))
    pytester.makepyfile(GATED)
    pytester.runpytest_inprocess(*plugin, "-k", "same").stdout.fnmatch_lines(
        ["*no baseline*--memplan-update*"]
    )
    assert pytester.runpytest_inprocess(*plugin, "-k", "same", "--memplan-update").ret == 0
    later = pytester.runpytest_inprocess(*plugin)
    later.assert_outcomes(passed=1, failed=1)
    later.stdout.fnmatch_lines(["*grew by*more than 1.00% allows*"])
