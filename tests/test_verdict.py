"""Verdicts: what fits, what is tight and what that takes, which GPUs cannot run a setup, what is not
counted.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from memplan import api
from memplan.cli.main import run
from memplan.planner.answers.verdict import close_calls, what_it_takes
from memplan.planner.inputs.models import find
from memplan.planner.prediction import Accuracy
from memplan.planner.tables.gpus import budget, common_gpus, find_gpu
from memplan.validate.answer import answer
from memplan.validate.ask import read

SHARED = {"method": "lora", "gpus": 2, "parallel": "zero3"}
"""ZeRO is not replayed: what fragmentation could undo is said beside a `fits`."""


def said(**fields) -> str:
    prediction = api.plan("llama-7b", **{**SHARED, **fields})
    return " ".join(text for text in prediction.warnings if "fragmentation" in text)


def test_the_first_example_is_what_the_trace_says_of_it():
    """8.08 GiB of the 7.76 GiB of an RTX 3070, as the trace has it to the byte (since torch 2.13; 2.12's
    order gives 8.33): expandable segments hold it, the native mode does not.
    """
    found = api.plan("llama-7b", method="qlora", gpu="rtx-3070")
    verdict = found.gpus[0]
    assert found.peak.device_bytes == 8_680_112_128
    assert verdict.verdict == "tight" and verdict.headroom_bytes == verdict.usable_bytes - 8_680_112_128
    assert verdict.low_bytes < verdict.usable_bytes < verdict.high_bytes
    assert "expandable_segments" in what_it_takes(found, find_gpu("rtx-3070"))


def test_a_close_fit_without_a_replay_is_called_close_and_a_roomy_one_is_not():
    need = api.plan("llama-7b", **SHARED).peak.device_bytes
    close = f"{need + 2**28}B"
    assert api.plan("llama-7b", **SHARED, gpu=close).gpus[0].verdict == "fits"
    assert "of usable memory to spare: the formula does not count fragmentation" in said(gpu=close)
    assert said(gpu=f"{need * 2}B") == "" and said(gpu=f"{need - 2**28}B") == ""
    assert said(gpu=close, allocator="expandable") == ""


def test_a_recorded_band_or_a_replay_counts_fragmentation_itself():
    prediction = api.plan("llama-7b", **SHARED)
    card = budget(f"{prediction.peak.device_bytes + 2**28}B")
    assert close_calls(prediction, [card])
    assert (
        close_calls(replace(prediction, accuracy=Accuracy(0.01, 0.02, 3, device_error=0.03)), [card]) is None
    )
    assert (
        close_calls(replace(prediction, smallest_capacity_bytes=prediction.peak.device_bytes), [card]) is None
    )
    alone = api.plan("llama-7b", method="lora")
    assert close_calls(alone, [budget(f"{alone.peak.device_bytes + 2**28}B")]) is None


@pytest.mark.parametrize("command", [[], ["compare", "--methods", "qlora"]])
def test_tight_exits_0_with_a_warning_and_1_where_strict(command, capsys):
    asked = [*command, "llama-7b", "--method", "qlora", "--gpu", "rtx-3070"]
    assert run(asked) == 0
    assert command or "tight on rtx-3070: only with" in capsys.readouterr().err
    assert run([*asked, "--strict"]) == 1


def test_an_unverified_gpu_never_says_fits(capsys):
    """AMD and Apple: a lower bound, which can only say no."""
    found = api.plan("gpt2", gpu="mi300x")
    document = found.to_document()
    assert document["gpus"][0]["verdict"] is None and "vendor" in document["gpus"][0]["why"]
    assert document["not_modelled"] and document["gpus"][0]["headroom_bytes"] > 0
    assert run(["gpt2", "--gpu", "mi300x"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("≥ AT LEAST ") and "not counted" in told.err
    assert run(["gpt2", "--gpu", "mi300x", "--strict"]) == 1
    assert run(["llama-3.1-70b", "--method", "full", "--gpu", "mi300x"]) == 1


def test_what_a_file_asks_for_and_is_not_counted_has_no_verdict(tmp_path, capsys):
    file = tmp_path / "axolotl.yaml"
    file.write_text(
        "base_model: google/gemma-2-2b\nsequence_len: 1024\nmicro_batch_size: 1\nrl: ebft\n"
        "datasets: [{path: mine, type: chat_template.default}]\n"
    )
    assert run([str(file), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert any(text.startswith("rl ") for text in document["not_modelled"])
    assert {gpu["verdict"] for gpu in document["gpus"]} <= {None, "no"}


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "lora", "checkpointing": "non_reentrant"},
        {"method": "qlora"},
        {"method": "lora", "weight_dtype": "float16", "autocast": "float16"},
    ],
)
def test_where_no_card_is_named_each_is_judged_as_if_it_were(fields):
    """A T4 has no fused attention in bfloat16: what fits on the kernels of a newer GPU need not fit there."""
    for model in ("qwen3-0.6b",):
        unnamed = {verdict.name: verdict for verdict in api.plan(model, **fields).gpus}
        assert {name: api.plan(model, **fields, gpu=name).gpus[0].verdict for name in unnamed} == {
            name: verdict.verdict for name, verdict in unnamed.items()
        }
        assert unnamed["t4"] == api.plan(model, **fields, gpu="t4").gpus[0]


FORCED = {"method": "qlora", "attention": "flash_attention_2"}
WHY = "flash_attention_2 needs compute capability 8.0 or later, found 7.5"


def test_a_gpu_that_nobody_named_and_that_cannot_run_the_setup_is_listed_with_why():
    found = {verdict.name: verdict for verdict in api.plan("llama-7b", **FORCED).gpus}
    assert list(found) == [gpu.name for gpu in common_gpus()]
    t4 = found.pop("t4").to_document()
    assert t4["verdict"] is None and t4["headroom_bytes"] is None and t4["why"].startswith(WHY)
    for name, verdict in found.items():
        assert verdict.verdict == api.plan("llama-7b", **FORCED, gpu=name).gpus[0].verdict
        assert "why" not in verdict.to_document()


def test_a_newer_gpu_may_refuse_a_head_size_too():
    """PyTorch's flash has no backward for heads of 193 to 224 on 8.6 to 8.9 and 12.x (check_flash_attention_
    head_size_requires_grad), and takes them on an A100.
    """
    document = dict(find("llama-7b").config, head_dim=208, name_or_path="heads-of-208")
    found = {verdict.name: verdict for verdict in api.plan(document, attention="sdpa-flash").gpus}
    refused = {name for name, verdict in found.items() if verdict.why is not None}
    assert refused == {"t4", "rtx-3060", "rtx-3070", "rtx-3090", "rtx-4080", "rtx-4090", "rtx-5090"} | {
        "a10g",
        "l4",
        "l40s",
    }
    assert "flash_trains_head_size" in str(found["rtx-4090"].why)


BACKENDS = ("sdpa-flash", "sdpa-cudnn")
COMMANDS = ([], ["compare"], ["fit", "--gpu", "l40s"], ["report"])


@pytest.mark.parametrize(
    ("command", "attention"),
    [
        *((command, "flash_attention_2") for command in COMMANDS if command != ["report"]),
        pytest.param(["report"], "flash_attention_2", marks=pytest.mark.slow),  # a minute of long rows
        *(([], backend) for backend in BACKENDS),
        *(pytest.param(c, b, marks=pytest.mark.slow) for c in COMMANDS[1:] for b in BACKENDS),
    ],
)
def test_no_command_fails_for_a_gpu_that_nobody_named(command, attention, tmp_path, capsys):
    """axolotl's example files state an attention in 213 of 250 cases."""
    file = tmp_path / "axolotl.yaml"
    file.write_text(
        "base_model: meta-llama/Llama-3.1-8B\nload_in_4bit: true\nadapter: qlora\nlora_target_linear: true\n"
        "sequence_len: 8192\nmicro_batch_size: 1\nbf16: auto\ngradient_checkpointing: true\n"
        f"attn_implementation: {'flash_attention_2' if attention == 'flash_attention_2' else 'sdpa'}\n"
        "datasets: [{path: mine, type: alpaca}]\n"
    )
    forced = [] if attention == "flash_attention_2" else ["--attention", attention]
    output = ["-o", str(tmp_path / "page.html")] if command == ["report"] else ["--json"]
    assert run([*command, str(file), *forced, *output]) == 0, capsys.readouterr().err


def test_the_screen_says_which_gpu_cannot_run_it(capsys):
    assert run(["llama-7b", "--method", "qlora", "--attention", "flash_attention_2"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"– t4: {WHY}" in text and "✓ fits rtx-3060" in text


@pytest.mark.parametrize("command", [[], ["compare"], ["fit"], ["report", "-o", "page.html"]])
def test_a_gpu_that_was_named_and_cannot_run_the_setup_is_an_error(command, capsys):
    asked = [*command, "llama-7b", "--method", "qlora", "--attention", "flash_attention_2", "--gpu", "t4"]
    assert run(asked) == 2
    assert WHY in capsys.readouterr().err


def test_an_answer_in_a_sentence_passes_over_what_cannot_run():
    """Each needs between 12 and 14.5 GiB: the T4 is the smallest GPU that holds so much."""
    asked = "llama 13b qlora fp16, 2k tokens"
    assert answer(read(asked)).smallest_card == "t4"
    assert answer(read(f"{asked}, flash attention 2")).smallest_card == "rtx-4080"


def test_jobs_go_to_gpus_that_can_run_them(tmp_path, capsys):
    file = tmp_path / "jobs.yaml"
    file.write_text("jobs: [{model: llama-7b, method: qlora, attention: flash_attention_2}]\n")
    assert run(["fit", str(file), "--json"]) == 0
    file.write_text(file.read_text() + "prices: {t4: 0.2}\n")
    assert run(["fit", str(file), "--json"]) == 2
    assert "no GPU asked about can run it: t4: flash_attention_2" in capsys.readouterr().err
