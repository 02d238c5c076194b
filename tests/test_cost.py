"""What a run costs beside GPU memory: an estimate that rests on published step times, and refuses what it has
no rates for.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import memplan
from memplan.cli.main import run
from memplan.planner.answers.cost import cost, parse_price, parse_tokens, slower_than_least
from memplan.planner.formula.flops import step_cost
from memplan.planner.formula.step_time import least_seconds
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import find_gpu

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("step_time", ROOT / "benchmarks" / "step_time.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_ratios_are_those_of_the_published_runs(script: ModuleType) -> None:
    """Every run scored again: the packaged ratios are not stale, and no measured step took less than the
    least time.
    """
    scored = [(one, script.ratio(one)) for one in script.runs()]
    assert len(scored) >= 48 and min(value for _, value in scored) >= 1
    packaged = json.loads(script.RATIOS.read_text(encoding="utf-8"))
    found = script.by_capability(scored)
    assert found.keys() == packaged.keys()
    for capability, entry in found.items():
        assert entry["gpus"] == packaged[capability]["gpus"]
        assert entry["ratios"] == pytest.approx(packaged[capability]["ratios"], abs=0.02)


def test_every_published_run_names_its_source(script: ModuleType) -> None:
    for one in script.runs():
        assert one["source"] and one["seconds"] > 0 and find_gpu(one["gpu"]).bf16_tflops, one["id"]


def test_the_range_of_another_gpu_is_that_of_all_runs() -> None:
    own, about = slower_than_least(find_gpu("a100-40gb"))
    every, note = slower_than_least(find_gpu("rtx-4090"))
    assert every[0] <= own[0] < own[1] < every[1]
    assert "none on such a GPU" in note and "none on such a GPU" not in about


def test_the_least_time_is_no_less_than_the_arithmetic() -> None:
    spec, gpu = find("llama-3.1-8b").spec(), find_gpu("a100-80gb")
    setup = resolve({"method": "lora", "micro_batch": 4, "gpu": "a100-80gb"})
    arithmetic = step_cost(spec, setup).total / (gpu.bf16_tflops * 1e12)
    least = least_seconds(spec, setup, gpu)
    assert arithmetic < least < 2 * arithmetic
    doubled = least_seconds(spec, setup.replaced(gradient_accumulation=2), gpu)
    assert 1.9 * least < doubled <= 2 * least


def test_few_tokens_take_as_long_as_reading_the_weights() -> None:
    spec, gpu = find("llama-3.1-8b").spec(), find_gpu("a100-80gb")
    setup = resolve({"method": "lora", "sequence_length": 8, "checkpointing": "none", "gpu": "a100-80gb"})
    reads = 2 * spec.parameters * 2 / (gpu.bandwidth_gbs * 1e9)
    assert least_seconds(spec, setup, gpu) >= reads


def test_what_cannot_be_estimated_is_said() -> None:
    spec = find("gpt2").spec()
    for fields, gpu in (
        ({"method": "lora"}, "24GiB"),
        ({"method": "full", "recipe": "raw", "weight_dtype": "float32"}, "t4"),
    ):
        setup = resolve({**fields, "gpu": gpu})
        with pytest.raises(UsageError):
            least_seconds(spec, setup, find_gpu(gpu))
        found = cost(spec, memplan.plan("gpt2", **fields, gpu=gpu), find_gpu(gpu), 10**6, 1.0)
        assert found.step_seconds is found.hours is found.money is None and found.why


def document(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    assert run([*args, "--json"]) in (0, 1)
    return json.loads(capsys.readouterr().out)


def test_the_document_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    args = (
        "llama-3.1-8b",
        "--method",
        "qlora",
        "--gpu",
        "a100-80gb",
        "--batch",
        "4",
        "--gpus",
        "2",
        "--parallel",
        "ddp",
    )
    assert "cost" not in document(capsys, *args)
    found = document(capsys, *args, "--tokens", "10M", "--price", "1.99/h")["cost"]
    assert found["steps"] == -(-10_000_000 // (4 * 2048 * 2))
    assert found["hours"] == pytest.approx([found["steps"] * s / 3600 for s in found["step_seconds"]])
    assert found["price"] == pytest.approx([2 * 1.99 * hours for hours in found["hours"]])
    adapters = found["checkpoint_bytes"][
        "model"
    ]  # fp32; each of 32 x 7 x 2 tensors has its step's number too
    assert found["checkpoint_bytes"]["optimizer_states"] == 2 * adapters + 4 * 32 * 7 * 2
    assert found["host_bytes"]["reading_without"] > found["host_bytes"]["reading_with_device_map"] > 0
    assert "communication between GPUs is not counted" in found["why"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("10M", 10**7), ("1.5b", 15 * 10**8), ("500k", 500_000), ("7", 7), (" 2 T ", 2 * 10**12)],
)
def test_tokens_as_people_write_them(text: str, value: int) -> None:
    assert parse_tokens(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("1.99/h", 1.99), ("$2", 2), ("0.5 / gpu-hour", 0.5), ("3/hr", 3)]
)
def test_prices_as_people_write_them(text: str, value: float) -> None:
    assert parse_price(text) == value


@pytest.mark.parametrize("option", ["--tokens", "--price"])
@pytest.mark.parametrize("text", ["", "x", "-1", "0", "1e9", "9" * 400, "nan", "10Q"])
def test_neither_is_guessed(capsys: pytest.CaptureFixture[str], option: str, text: str) -> None:
    assert run(["gpt2", "--gpu", "t4", f"{option}={text}"]) == 2
    found = capsys.readouterr()
    assert found.out == "" and option in found.err and len(found.err) < 200


def test_a_cost_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["gpt2", "--tokens", "10M"]) == 2
    assert "--gpu" in capsys.readouterr().err
