"""What is said beside a formula's `fits` that fragmentation could undo."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memplan import api
from memplan.planner.answers.verdict import UNCOUNTED, close_calls, judge, uncounted
from memplan.planner.prediction import Accuracy
from memplan.planner.tables.gpus import budget
from memplan.planner.tables.units import GIB
from memplan.validate.answer import answer
from memplan.validate.ask import read

FIELDS = {"method": "rslora", "rank": 64, "targets": "q_proj,v_proj", "alpha": 16, "dropout": 0.1}
"""The formula's 23.9 GiB are 24.7 GiB in the trace, of which 0.8 GiB are fragmentation."""


def said(**fields) -> str:
    prediction = api.plan("llama-7b", **{**FIELDS, **fields})
    return " ".join(text for text in prediction.warnings if "fragmentation" in text)


def test_a_close_fit_is_called_close_and_a_roomy_one_is_not():
    assert api.plan("llama-7b", **FIELDS, gpu="24.2GiB").gpus[0].verdict == "fits"
    assert "fits 24.2GiB with 1.4% of usable memory to spare" in said(gpu="24.2GiB") and said(
        gpu="24.2GiB"
    ).endswith("confirm with --engine trace")
    assert said(gpu="30GiB") == "" and said(gpu="23GiB") == ""
    assert said(gpu="24.2GiB", allocator="expandable") == ""


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_bound_is_the_share_of_setups_like_it(method):
    prediction = api.plan("llama-7b", method=method)
    room = round(prediction.peak.allocated_bytes * uncounted(prediction.setup))
    for more, close in ((-1, True), (1, False)):
        card = budget(f"{prediction.peak.device_bytes + room + more}B")
        assert judge(prediction, card).verdict == "fits"
        assert (close_calls(prediction, [card]) is not None) == close
    assert UNCOUNTED["others"] < UNCOUNTED["4-bit base"]


def test_every_close_card_is_named_where_none_is_asked_for():
    prediction = api.plan("llama-7b", **FIELDS)
    cards = [budget(f"{size * GIB}B") for size in (25, 24, 40)]
    text = close_calls(prediction, cards)
    assert text is not None and text.count("of usable") == 2


def test_a_recorded_band_or_a_replay_counts_fragmentation_itself():
    prediction, card = api.plan("llama-7b", **FIELDS), budget("24.2GiB")
    assert close_calls(prediction, [card])
    assert (
        close_calls(replace(prediction, accuracy=Accuracy(0.01, 0.02, 3, device_error=0.03)), [card]) is None
    )
    assert (
        close_calls(replace(prediction, smallest_capacity_bytes=prediction.peak.device_bytes), [card]) is None
    )


def test_an_answer_in_a_sentence_says_so_too():
    assert any("fragmentation" in text for text in answer(read("llama-7b LoRA on 28GiB")).warnings)
    assert not any("fragmentation" in text for text in answer(read("llama-7b LoRA on 40GiB")).warnings)


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
    for model in ("llama-7b", "qwen3-4b"):
        unnamed = {verdict.name: verdict for verdict in api.plan(model, **fields).gpus}
        assert {name: api.plan(model, **fields, gpu=name).gpus[0].verdict for name in unnamed} == {
            name: verdict.verdict for name, verdict in unnamed.items()
        }
        assert unnamed["t4"] == api.plan(model, **fields, gpu="t4").gpus[0]
