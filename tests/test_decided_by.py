"""Which of loading and the training step decides that a run does not fit, in plan, fit and ask."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

import memplan
from memplan.cli.main import group
from memplan.planner.answers.parts import deciding, parts
from memplan.planner.tables.gpus import find_gpu

SHARED = {
    "method": "qlora",
    "recipe": "axolotl",
    "parallel": "fsdp",
    "gpus": 2,
    "offload": "all",
    "checkpointing": "non_reentrant",
    "attention": "flash_attention_2",
    "sequence_length": 512,
}
FLAGS = [
    *("--method", "qlora", "--recipe", "axolotl", "--parallel", "fsdp", "--gpus", "2", "--checkpointing"),
    *("--set", "offload=all", "--attention", "flash_attention_2", "--seq", "512", "--gpu", "rtx-3090"),
]


def out(*arguments: str) -> str:
    return CliRunner().invoke(group, list(arguments)).stdout


def printed(*arguments: str) -> str:
    return " ".join(out(*arguments).split())


def test_loading_decides_where_the_whole_base_is_on_each_gpu_first() -> None:
    found = memplan.plan("llama-2-70b", gpu="rtx-3090", **SHARED).gpus[0]
    assert found.verdict == "no"
    assert found.parts is not None
    assert (found.parts.load, found.parts.step, found.parts.decided_by) == ("no", "fits", "load")
    assert found.parts.load_bytes == found.needed_bytes
    on_host = memplan.plan("llama-2-70b", gpu="rtx-3090", load_on_host=True, **SHARED).gpus[0]
    assert on_host.verdict == "fits"
    assert on_host.parts is not None
    assert on_host.parts.decided_by is None


def test_the_step_decides_where_the_logits_are_too_many() -> None:
    prediction = memplan.plan("llama-7b", method="lora", gpu="rtx-4090", micro_batch=8)
    found = prediction.gpus[0].parts
    assert found is not None
    assert (found.load, found.step, found.decided_by) == ("fits", "no", "step")
    assert deciding(found) == ""  # the ordinary case is not said


def test_both_decide_where_the_weights_alone_are_too_many() -> None:
    found = memplan.plan("llama-7b", method="full", gpu="rtx-3070").gpus[0].parts
    assert found is not None
    assert found.decided_by == "both"
    assert deciding(found) == ""


def test_what_is_not_counted_has_no_parts() -> None:
    prediction = memplan.plan("llama-7b", method="lora", gpu="rtx-4090", task="gkd")
    assert prediction.not_modelled
    assert parts(prediction, find_gpu("rtx-4090")) is None


@pytest.mark.parametrize("command", ["plan", "fit"])
def test_the_screen_says_which_decides_and_that_the_other_fits(command: str) -> None:
    text = printed(command, "llama-2-70b", *FLAGS)
    assert "Decides" in text
    assert "loading (" in text
    assert "the training step alone," in text


def test_ask_says_the_same() -> None:
    sentence = "Can I qlora llama-2-70b with fsdp on 2 rtx 3090 at 512 tokens?"
    assert "Loading decides (" in printed("ask", sentence)
    assert "which does not surely fit either" in printed("ask", sentence)  # with what lies between tensors


@pytest.mark.parametrize("command", ["plan", "fit"])
def test_the_document_has_both_verdicts(command: str) -> None:
    document: dict[str, Any] = json.loads(out(command, "llama-2-70b", *FLAGS, "--json"))
    found = document["gpus"][0]["parts"] if command == "plan" else document["parts"]
    assert found["decided_by"] == "load"
    assert (found["load"]["verdict"], found["step"]["verdict"]) == ("no", "fits")
    assert found["step"]["device_bytes"] < found["load"]["device_bytes"]
