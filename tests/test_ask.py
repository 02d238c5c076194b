"""Questions in sentences: what is read, what is refused, and the answer's arithmetic."""

from __future__ import annotations

import json

import pytest

from memplan.cli.main import run
from planner.errors import UsageError
from validate.answer import answer
from validate.ask import read
from validate.lab import Lab


@pytest.mark.parametrize(
    "sentence, model, gpu, fields",
    [
        ("65B QLoRA 48GB?", "llama-65b", "l40s", {"method": "qlora"}),
        ("can I fine-tune llama-2-7b with LoRA on a RTX 4090, seq 4k, batch size 2?", "llama-2-7b", "rtx-4090",
         {"method": "lora", "sequence_length": 4096, "micro_batch": 2}),
        ("单张消费级显卡 4090 能用 QLoRA 微调 33B 吗？序列 4096", "llama-33b", "rtx-4090", {"method": "qlora", "sequence_length": 4096}),
        ("650亿参数 QLoRA，48GB 够不够？", "llama-65b", "l40s", {"method": "qlora"}),
        ("130亿 全量微调", "llama-13b", None, {"method": "full"}),
        ("full fine-tuning of opt-350m in fp32, no checkpointing", "opt-350m", None,
         {"method": "full", "weight_dtype": "float32", "checkpointing": "none"}),
        ("7B LoRA r=64 梯度检查点 24GiB", "llama-7b", "24GiB", {"method": "lora", "rank": 64, "checkpointing": "non_reentrant"}),
        ("does Llama 3.1 8B with 4-bit fit on an H100?", "llama-3.1-8b", "h100-80gb", {"method": "qlora"}),
    ],
)  # fmt: skip
def test_what_is_read(sentence, model, gpu, fields):
    question = read(sentence)
    assert (question.model, question.gpu) == (model, gpu)
    assert dict(question.fields) == fields
    assert all(a.words or a.name == "method" for a in question.assumptions), "every assumption names its words"


@pytest.mark.parametrize(
    "sentence, words",
    [
        ("", "expected a sentence"),
        ("x" * 501, "1 to 500 characters"),
        ("QLoRA on 48GB?", "no model in the sentence"),
        ("65B QLoRA with 17 widgets", "'17 widgets' was not understood"),
        ("999B LoRA", "no model of about 999b in the catalogue"),
        ("7B LoRA 30%", "'30%' was not understood"),
    ],
)
def test_what_is_not_understood_is_refused(sentence, words):
    with pytest.raises(UsageError) as caught:
        read(sentence)
    assert words in str(caught.value)


def test_several_cards_are_said_and_answered_for_one():
    question = read("8张A100 全量微调 llama-2-7b")
    assert question.gpu == "a100-80gb"
    assert any(a.name == "cards" and "one" in a.value for a in question.assumptions)


def test_the_language_is_the_questions_unless_said():
    assert read("65B QLoRA 48GB?").lang == "en" and read("65B QLoRA 48GB 够吗").lang == "zh"
    assert read("65B QLoRA 48GB 够吗", "en").lang == "en"


def test_the_verdict_flips_exactly_at_the_boundary():
    lab = Lab()
    found = answer(read("33B QLoRA 4090"), lab)
    boundary = dict(found.boundaries)["sequence_length"].boundaries[0]
    assert answer(read(f"33B QLoRA 4090 seq {boundary.low}"), lab).verdict == "fits"
    assert answer(read(f"33B QLoRA 4090 seq {boundary.high}"), lab).verdict == "no"


@pytest.mark.parametrize(
    "sentence", ["65B QLoRA 48GB?", "7B full 80GB", "13B LoRA 梯度检查点", "7B fp32 full 梯度检查点 batch 4", "7B 推理 24GB"]
)
def test_the_hand_calculation_is_near_the_engines_sum(sentence):
    """By arithmetic on a board: within a tenth of the rows, and the rest is shown as such."""
    found = answer(read(sentence))
    assert found.by_hand == pytest.approx(found.prediction.peak.allocated_bytes, rel=0.1)


def test_nf4_weights_by_hand():
    """4 + 8/64 + 32/(64 x 256) bits for each of 64,760,053,760 linear weights (80 layers x (4 x 8192^2 + 3 x 8192 x 22016))."""
    found = answer(read("65B QLoRA 48GB"))
    linear = 80 * (4 * 8192**2 + 3 * 8192 * 22016)
    assert found.derivation[0].bytes == round(linear * (4 + 8 / 64 + 32 / (64 * 256)) / 8)


def test_the_command_prints_both_languages_and_its_document(capsys):
    assert run(["ask", "65B QLoRA 24GB?"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("No: qlora on llama-65b needs") and "by hand" in out and "holds nowhere" in out
    assert run(["ask", "65B QLoRA 48GB 够吗"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("可以：llama-65b") and "手算合计" in out
    assert run(["ask", "13B LoRA", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "memplan.ask/1" and document["verdict"] is None and document["smallest_card"]
    assert run(["ask", "how much is the fish"]) == 2
