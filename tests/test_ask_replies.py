"""Replies that are no verdict on a GPU: the numbers are the engine's own, claims flip with their values."""

from __future__ import annotations

import io
import json
import sys

import pytest

from memplan.cli.main import run
from memplan.planner.tables.errors import UsageError
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.questions.replies import ask


@pytest.fixture(scope="module")
def context():
    return EvaluationContext()


def reply(sentence, context):
    (one,) = ask(sentence, context=context)
    return one


def test_a_saving_is_the_difference_of_two_predictions(context):
    found = reply("How much does gradient checkpointing save for LoRA 7B at seq 1024?", context)
    sizes = [
        context.predict(
            "llama-7b", {"method": "lora", "sequence_length": 1024, "checkpointing": c}
        ).peak.device_bytes
        for c in ("non_reentrant", "none")
    ]
    assert [row.bytes for row in found.rows if not row.what["en"].startswith(" ")] == sizes
    assert f"{(sizes[1] - sizes[0]) / sizes[1]:.1%}) less" in found.line["en"]


def test_a_difference_is_told_without_and_with_checkpointing_where_it_is_open(context):
    line = reply("LoRA比全参省多少", context).line
    assert "不开检查点少" in line["zh"] and "；开检查点少" in line["zh"]
    assert "llama-7b" in line["zh"], "the model that was not named is said"


@pytest.mark.parametrize(
    "sentence, holds",
    [
        ("Full fine-tuning 7B in bf16 with checkpointing needs 56GB", True),
        ("Full fine-tuning 7B in bf16 with checkpointing needs at least 28GB", True),
        ("Full fine-tuning 7B in bf16 with checkpointing needs at least 112GB", False),
        ("Full fine-tuning 7B needs 112GB", None),
        ("33B模型4bit量化后是不是只要16.5G", False),
        ("33B模型4bit量化后是不是只要33G", True),
        ("LoRA trains at least 0.1% of the parameters of 7B", True),
        ("LoRA trains only 0.1% of the parameters of 7B", False),
        ("LoRA on 7B with checkpointing uses 16GB", True),
        ("LoRA on 7B with checkpointing uses 32GB", False),
        ("LoRA on 7B with checkpointing doesn't take 32GB", True),
    ],
)
def test_a_claimed_value_decides(context, sentence, holds):
    assert reply(sentence, context).holds is holds


def test_sixteen_bytes_a_parameter_are_counted(context):
    """4 B of weights, 4 of gradients and 8 of states, each of 6,738,415,616 parameters."""
    rows = reply("Full fine-tuning 7B needs 112GB, right?", context).rows
    first = next(row for row in rows if "states (fp32" in row.what["en"])
    assert first.bytes == pytest.approx(16 * 6_738_415_616, rel=1e-3) and "16.0 B/parameter" in first.value


def test_amounts_are_the_engines(context):
    fields = {"method": "lora", "rank": 16}
    expected = context.predict("llama-2-7b", fields)
    found = reply("How big is the LoRA adapter file for rank 16 on Llama-2-7B?", context)
    assert found.rows[0].bytes == expected.checkpoint_bytes and "rank 16 on all-linear" in found.line["en"]
    line = reply("How many parameters does LoRA rank 16 train on Llama-2-7B?", context).line["en"]
    assert f"{expected.trainable_parameters:,} of {expected.total_parameters:,}" in line


def test_the_kv_cache_is_two_tensors_a_layer(context):
    """32 layers x keys and values x 32 heads x 128, 2 bytes each, for 4,096 tokens."""
    found = reply("What is the KV cache of llama-2-7b at 4096 tokens?", context)
    assert found.rows[0].bytes == 32 * 2 * 32 * 128 * 2 * 4096


def test_what_keeps_no_whole_keys_has_no_such_cache(context):
    with pytest.raises(UsageError, match="sliding window or latent attention"):
        ask("KV cache of gemma-2-9b at 4096 tokens?", context=context)


def test_the_largest_model_fits_and_the_next_does_not(context):
    found = reply("biggest model for LoRA on a 12GB 3060 with checkpointing at 512 tokens?", context)
    fits, beyond = found.rows
    usable = context.gpu("rtx-3060").usable_bytes
    assert fits.bytes <= usable < beyond.bytes


def test_times_are_published_or_estimated_for_a_gpu(context):
    found = reply("QLoRA为什么比LoRA慢", context)
    assert (
        all("litgpt" in row.remark["en"] or row.remark["en"] for row in found.rows) and len(found.rows) >= 5
    )
    line = reply("How long does a step of QLoRA 7B take on an A100?", context).line["en"]
    assert "s a step of 2,048 tokens" in line and "an estimate" in line
    for sentence in ("How long does QLoRA 7B take?", "How much does it cost to LoRA 7B?"):
        with pytest.raises(UsageError, match="a time is an estimate for a model on a GPU"):
            ask(sentence, context=context)


def test_a_denial_is_judged_and_a_word_not_understood_forbids_a_verdict(context):
    true = reply("LoRA on opt-6.7b does not fit on a 3060", context)
    assert true.holds is True and true.line["en"].startswith("True as asked: it does not fit")
    false = reply("QLoRA opt-125m does not fit on a 3060", context)
    assert false.holds is False and false.line["en"].startswith("Not true: it fits")
    open_ = reply("QLoRA opt-125m on my wristwatch 3060", context)
    assert open_.holds is None and "Neither yes nor no" in open_.line["en"]
    assert not open_.line["en"].startswith(("Yes", "No", "Barely"))


def test_consumer_gpus_are_each_judged(context):
    found = reply("70B fits a single consumer GPU", context)
    assert found.holds is False and found.line["en"].startswith("Depends on the GPU meant")
    assert "rtx-5090" in [row.what["en"] for row in found.rows]


def test_standard_input_is_read_and_two_answers_are_two_documents(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("1B的LoRA权重文件多大\n"))
    assert run(["ask", "-", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["intent"], document["verdict"], document["not_used"]) == ("file", None, [])
    assert run(["ask", "--json", "How many parameters does LoRA or DoRA train on 1B?"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] is None
    assert [one["assumptions"][-1]["value"] for one in document["answers"]] != []
    assert len(document["answers"]) == 2
    assert run(["ask", "QLoRA opt-125m 12GB on my wristwatch"]) == 0
    assert "not used: wristwatch" in capsys.readouterr().out
    assert run(["ask", "x" * 501]) == 2
