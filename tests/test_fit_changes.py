"""What `fit` advises where nothing fits as asked: the fewest changes, a command that does what it says."""

from __future__ import annotations

import shlex

from click.testing import CliRunner, Result

from memplan.cli.main import group
from memplan.planner.answers.fit.changes import waterfall
from memplan.planner.answers.fit.frontier import Room, need
from memplan.planner.answers.fit.suggest import changed
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.gpus import find_gpu


def run(*args: str) -> Result:
    return CliRunner().invoke(group, list(args), standalone_mode=False)


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_waterfall_holds_no_step_that_it_fits_without():
    spec, gpu = find("qwen3-8b").spec(), find_gpu("rtx-3060")
    setup = resolve({"method": "qlora", "gpu": "rtx-3060"})
    steps = waterfall(spec, setup, Room(gpu).around(spec, setup))
    assert steps[-1].fits and len(steps) > 1
    for left_out in steps:
        fields = {key: value for step in steps if step is not left_out for key, value in step.fields.items()}
        assert not need(spec, changed(setup, fields)).fits(gpu)


def test_what_fits_with_mild_changes_is_chosen_and_its_command_fits():
    said = words(run("fit", "qwen3-8b", "--method", "qlora", "--gpu", "rtx-3060").stdout)
    assert said.startswith("largest micro-batch at 2,048 tokens: 3 with qlora --loss chunked --set kbit_prep")
    command = said.partition("Next memplan ")[2].partition(" --explain")[0]
    assert run(*shlex.split(command)).stdout.startswith("✓ FITS rtx-3060")
    assert said.count("--loss ") == 3  # the first line, one saving, the command: no second value of a field


def test_where_they_are_not_enough_shorter_sequences_are_told():
    said = words(
        run("fit", "llama-3.1-8b", "--method", "qlora", "--seq", "16384", "--gpu", "rtx-3060").stdout
    )
    assert "nothing fits at these sizes; qlora does with --loss chunked" in said and "--seq 4096" in said
    said = words(run("fit", "llama-3.1-70b", "--method", "qlora", "--gpu", "rtx-3060").stdout)
    assert "no method fits, even with mild changes" in said
