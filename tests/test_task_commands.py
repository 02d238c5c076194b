"""Every command answers of every task: none takes a model without the task's own head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from memplan.cli.main import group
from memplan.planner.tables.tasks import TASKS

OF_A_DECODER = [task.name for task in TASKS.values() if not task.classes]
SMALL = ("smollm2-135m", "--method", "lora")


def run(*args: str) -> Result:
    return CliRunner().invoke(group, list(args), standalone_mode=False, catch_exceptions=False)


def needs(*args: str, gpu: bool = True) -> int:
    card = ("--gpu", "rtx-4090") if gpu else ()
    return int(json.loads(run(*SMALL, *args, *card, "--json").stdout)["peak"]["device_bytes"])


@pytest.mark.parametrize(
    "task", [pytest.param(name, marks=() if name == "reward" else pytest.mark.slow) for name in OF_A_DECODER]
)
def test_fit_compare_and_report_speak_of_the_task(task: str, tmp_path: Path):
    option = ("--task", task)
    fitted = json.loads(run("fit", *SMALL, *option, "--gpu", "rtx-4090", "--json").stdout)
    own = next(entry for entry in fitted["methods"] if entry["method"] == "lora")
    assert own["device_bytes"] == needs(*option)
    compared = json.loads(run("compare", SMALL[0], *option, "--json").stdout)["methods"]
    lora = next(entry for entry in compared if entry["method"] == "lora")
    assert lora["setup"]["task"] == task and lora["peak"]["device_bytes"] == needs(*option, gpu=False)
    assert run("report", *SMALL, *option, "-o", str(tmp_path / "page.html")).return_value in (None, 0)
    assert run(*SMALL, *option, "--gpu", "rtx-4090", "--price", "2/h", "--tokens", "1M").return_value in (
        None,
        0,
    )
