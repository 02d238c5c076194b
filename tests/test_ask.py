"""Questions in sentences: what is read, what is refused, and the answer's arithmetic."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

import memplan
from memplan.cli.main import run
from memplan.planner.answers.cost import cost
from memplan.planner.answers.verdict import close_calls
from memplan.planner.formula import assumptions
from memplan.planner.formula.sharding import strategies
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import find_gpu
from memplan.validate.answer import answer
from memplan.validate.ask import read
from memplan.validate.chinese import warning_in, warnings
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.summary import summary_line


@pytest.mark.parametrize(
    "sentence, model, gpu, fields",
    [
        ("65B QLoRA 48GB?", "llama-65b", "48gb", {"method": "qlora"}),
        (
            "can I fine-tune llama-2-7b with LoRA on a RTX 4090, seq 4k, batch size 2?",
            "llama-2-7b",
            "rtx-4090",
            {"method": "lora", "sequence_length": 4096, "micro_batch": 2},
        ),
        (
            "单张消费级显卡 4090 能用 QLoRA 微调 33B 吗？序列 4096",
            "llama-33b",
            "rtx-4090",
            {"method": "qlora", "sequence_length": 4096},
        ),
        ("650亿参数 QLoRA，48GB 够不够？", "llama-65b", "48gb", {"method": "qlora"}),
        ("130亿 全量微调", "llama-13b", None, {"method": "full"}),
        (
            "full fine-tuning of opt-350m in fp32, no checkpointing",
            "opt-350m",
            None,
            {"method": "full", "weight_dtype": "float32", "checkpointing": "none"},
        ),
        (
            "7B LoRA r=64 梯度检查点 24GiB",
            "llama-7b",
            "24GiB",
            {"method": "lora", "rank": 64, "checkpointing": "non_reentrant"},
        ),
        ("does Llama 3.1 8B with 4-bit fit on an H100?", "llama-3.1-8b", "h100-80gb", {"method": "qlora"}),
    ],
)
def test_what_is_read(sentence, model, gpu, fields):
    question = read(sentence)
    assert (question.model, question.gpu) == (model, gpu)
    assert dict(question.fields) == fields
    assert all(a.words or a.name == "method" for a in question.assumptions), (
        "every assumption names its words"
    )


@pytest.mark.parametrize(
    "sentence, words",
    [
        ("", "expected a sentence"),
        ("x" * 501, "1 to 500 characters"),
        ("QLoRA on 48GB?", "no model in the sentence"),
        ("65B QLoRA with 17 widgets", "'17' was not understood"),
        ("3000B LoRA", "no model of about 3000b in the catalog"),
        ("7B LoRA 30%", "'30%' was not understood"),
    ],
)
def test_what_is_not_understood_is_refused(sentence, words):
    with pytest.raises(UsageError) as caught:
        read(sentence)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "sentence, gpu, gpus",
    [
        ("8张A100 全量微调 llama-2-7b", "a100-80gb", 8),
        ("8xH100 full 70B", "h100-80gb", 8),
        ("70B qlora on two 3090s", "rtx-3090", 2),
        ("2x4090 qlora 70b", "rtx-4090", 2),
        ("8卡A100全量微调65B", "a100-80gb", 8),
        ("full 8B on 8x A100 40GB with ZeRO-3", "a100-40gb", 8),
        ("70b lora fsdp 8 h100", "h100-80gb", 8),
        ("70B 双卡 24G qlora", "24gb", 2),
        ("单卡A100 80G 7B lora", "a100-80gb", None),
        ("a 3060 12GB qlora 7b", "rtx-3060", None),
        ("qlora 7b batch 16 A100", "a100-80gb", None),
        ("1 x A6000 lora 8b", "rtx-a6000", None),
    ],
)
def test_cards_are_counted(sentence, gpu, gpus):
    question = read(sentence)
    assert (question.gpu, question.fields.get("gpus")) == (gpu, gpus)
    assert ("parallel" in question.fields) == (gpus is not None)


@pytest.mark.parametrize(
    "sentence, model, gpu",
    [
        ("Gemma 4 31B LoRA 80GB?", "gemma-4-31b", "80gb"),
        ("Ministral 3 8B QLoRA 12GB?", "ministral-3-8b", "12gb"),
        ("Olmo 3 32B QLoRA 48GB?", "olmo-3-32b", "48gb"),
        ("EXAONE 4 32B LoRA 80GB?", "exaone-4.0-32b", "80gb"),
    ],
)
def test_a_version_number_is_part_of_a_name_never_a_count_of_cards(sentence, model, gpu):
    question = read(sentence)
    assert (question.model, question.gpu) == (model, gpu) and "gpus" not in question.fields


def test_a_size_alone_is_a_gpu_of_the_smallest_usable_size_and_says_so():
    question = read("7b lora 24GB")
    assert question.gpu == "24gb"
    assert any("a GPU sold as 24 GB, of the smallest usable size" in a.value for a in question.assumptions)


def test_a_card_is_not_sold_with_any_size():
    with pytest.raises(UsageError, match="rtx-4090 is sold with 24 GB, not 48 GB"):
        read("4090 48GB qlora 7b")


@pytest.mark.parametrize(
    "sentence, fields",
    [
        ("7b qlra 24g", {"method": "qlora"}),
        ("mistarl 7b chekpointing lora", {"method": "lora", "checkpointing": "non_reentrant"}),
        ("7B with AdamW 8bit on 24GB lora", {"method": "lora", "optimizer": "adamw_bnb_8bit"}),
        ("int8 lora 7b", {"method": "qlora", "quant_type": "int8"}),
        (
            "flash attention 2 llama 7b lora 4k",
            {"method": "lora", "attention": "flash_attention_2", "sequence_length": 4096},
        ),
        ("train 1.5B fully", {"method": "full"}),
        ("7B 全参微调 混合精度", {"method": "full", "weight_dtype": "float32"}),
        (
            "LoRA r=8 alpha 16 on q_proj and v_proj, 7B",
            {"method": "lora", "rank": 8, "alpha": 16, "targets": ("q_proj", "v_proj")},
        ),
        (
            "7B lora gradient accumulation 4 batch 2",
            {"method": "lora", "gradient_accumulation": 4, "micro_batch": 2},
        ),
    ],
)
def test_more_words_are_read(sentence, fields):
    assert dict(read(sentence).fields) == fields


@pytest.mark.parametrize(
    "sentence, words",
    [
        ("Qwen9-VL-7B lora 48GB", "'qwen9-vl-7b' is not in the catalog"),
        ("chatglm3-6b lora", "'chatglm3-6b' is not in the catalog"),
        ("Phi 5 14B QLoRA 16GB?", "'phi 5 14b' is not in the catalog (did you mean phi-4-14b?)"),
        ("Gemma 4 30B LoRA 80GB?", "'gemma 4 30b' is not in the catalog: give a hub id"),
        ("7B lora gptq 24GB", "'gptq': weights quantized that way"),
        ("70B full with cpu offload", "'cpu offload': offloading is a setting"),
        ("7B full int8", "an 8-bit base is for LoRA"),
        ("7B lora fsdp A100", "fsdp on how many GPUs"),
        ("0x4090 qlora 7b", "expected 1 to 1024 GPUs"),
    ],
)
def test_what_would_change_the_answer_is_refused(sentence, words):
    with pytest.raises(UsageError) as caught:
        read(sentence)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "sentence, wanted",
    [
        ("what is the max sequence length for llama 2 13b qlora on 24 gb?", "sequence_length"),
        ("33B QLoRA 24GB 最长序列多长", "sequence_length"),
        ("what batch size can I use for qlora 7b on 24gb", "micro_batch"),
        ("7B lora 24G 最大批大小", "micro_batch"),
        ("how many A100 for full finetune 13B", "cards"),
        ("全量微调13B要几张A100", "cards"),
        ("65B QLoRA 48GB?", ""),
        ("7B lora batch size 4", ""),
    ],
)
def test_what_is_asked_for(sentence, wanted):
    assert read(sentence).wanted == wanted


def test_the_largest_is_exact_and_comes_first():
    context = EvaluationContext()
    found = answer(read("what batch size can I use for qlora 7b on 24gb"), context)
    largest = dict(found.boundaries)["micro_batch"].boundaries[0].low
    assert summary_line(found)["en"].startswith(f"Largest micro-batch: {largest} (")
    assert answer(read(f"qlora 7b on 24gb batch {largest}"), context).survives
    beyond = answer(read(f"qlora 7b on 24gb batch {largest + 1}"), context)
    assert not beyond.survives and summary_line(beyond)["en"].startswith(
        {"tight": "Probably not: ", "no": "No: "}[beyond.verdict]
    )


def test_where_no_method_is_named_the_richest_that_fits_is_chosen_and_said():
    found = answer(read("能不能在24GiB显卡上微调13B"))
    assert found.verdict == "fits" and found.prediction.setup.method == "qlora"
    assert any(a.name == "method" and "first of full" in a.value for a in found.question.assumptions)
    assert {b.what for b in found.beside} >= {
        "full, fp32 weights",
        "lora",
        "lora, checkpointing",
        "qlora, checkpointing",
    }
    assert answer(read("微调 opt-350m 24G")).prediction.setup.method == "full"


def test_beside_a_no_stands_the_mildest_change_that_fits():
    line = summary_line(answer(read("llama-3-8b LoRA 24GB")))["en"]
    assert line.startswith("No: ") and "lora, checkpointing needs" in line and line.endswith("which fits")


def test_the_language_is_the_questions_unless_said():
    assert read("65B QLoRA 48GB?").lang == "en" and read("65B QLoRA 48GB 够吗").lang == "zh"
    assert read("65B QLoRA 48GB 够吗", "en").lang == "en"


def test_the_verdict_flips_exactly_at_the_boundary():
    context = EvaluationContext()
    found = answer(read("33B QLoRA 4090"), context)
    boundary = dict(found.boundaries)["sequence_length"].boundaries[0]
    assert answer(read(f"33B QLoRA 4090 seq {boundary.low}"), context).survives
    assert not answer(read(f"33B QLoRA 4090 seq {boundary.high}"), context).survives


@pytest.mark.parametrize(
    "sentence",
    [
        "65B QLoRA 48GB?",
        "7B full 80GB",
        "13B LoRA 梯度检查点",
        "7B fp32 full 梯度检查点 batch 4",
        "7B 推理 24GB",
        "mixtral-8x7b qlora",
    ],
)
def test_the_hand_calculation_is_the_engines_sum(sentence):
    """By arithmetic on a board: within a thousandth of the rows, and what is left is shown as such."""
    found = answer(read(sentence))
    assert found.by_hand == pytest.approx(found.prediction.peak.allocated_bytes, rel=1e-3)


@pytest.mark.parametrize(
    "sentence", ["65B QLoRA 48GB?", "7B full 80GB", "8B LoRA 4090", "7B qlora without checkpointing"]
)
def test_every_line_can_be_done_again(sentence):
    """The numbers that stand in a line multiply to the bytes that stand beside it."""
    for line in answer(read(sentence)).derivation:
        text = str(line.arithmetic).rpartition(": ")[2]
        if "alive" in text or "kinds of tensors" in text:
            continue
        product = 1.0
        for number in re.findall(r"[\d,.]+", text):
            product *= float(number.replace(",", ""))
        product /= 8 if "bits" in text else 1
        assert product == pytest.approx(line.bytes, rel=2e-3), line


def test_nf4_weights_by_hand():
    """4 + 8/64 + 32/(64 x 256) bits for each of 64,760,053,760 linear weights (80 layers x (4 x 8192^2 + 3 x
    8192 x 22016)).
    """
    found = answer(read("65B QLoRA 48GB"))
    linear = 80 * (4 * 8192**2 + 3 * 8192 * 22016)
    assert found.derivation[0].bytes == round(linear * (4 + 8 / 64 + 32 / (64 * 256)) / 8)


def test_the_command_prints_both_languages_and_its_document(capsys):
    assert run(["ask", "65B QLoRA 24GB?"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("No: qlora on llama-65b needs") and "never fits" in out
    assert "total by hand" not in out and len(out.splitlines()) <= 26
    assert run(["ask", "65B QLoRA 24GB?", "--explain"]) == 0
    assert "total by hand" in capsys.readouterr().out
    assert run(["ask", "65B QLoRA 48GB 够吗", "--explain"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("多半不行：llama-65b") and "手算合计" in out
    assert run(["ask", "13B LoRA", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "memplan.ask/1" and document["verdict"] is None and document["smallest_card"]
    assert run(["ask", "how much is the fish"]) == 2


def warned(model: str, gpu: str | None = None, engine: str = "formula", **fields: object) -> list[str]:
    """What a prediction warns of: all that an answer can say too."""
    spec, setup = find(model).spec(), resolve({"sequence_length": 512, "gpu": gpu, **fields})
    return [*assumptions.warnings(spec, setup), *strategies.warnings(engine, setup)]


def basis(gpu, **setup):
    """What an estimate of a step's time rests on."""
    return cost(
        find("llama-7b").spec(), memplan.plan("llama-7b", method="lora", gpu=gpu, **setup), find_gpu(gpu)
    ).why


def test_every_warning_of_a_prediction_has_its_chinese():
    """Each template is found again in a real warning, with the same numbers, and no real warning lacks
    one.
    """
    fsdp = {"gpus": 8, "parallel": "fsdp"}
    said = [
        *warned("gpt-oss-20b", method="qlora"),
        *warned("gpt-oss-20b", method="qlora", kbit_prepare=False),
        *warned("gpt-oss-20b", method="qlora", quant_type="int8", kbit_prepare=False),
        *warned("llama-7b", "t4"),
        *warned("falcon-7b", method="qlora"),
        *warned("qwen3-8b", method="freeze", checkpointing="non_reentrant"),
        *warned("llama-7b", method="full", weight_dtype="float16", autocast="float16"),
        *warned("llama-7b", parallel="ddp"),
        *warned("llama-7b", parallel="zero2"),
        *warned("llama-7b", **fsdp, fsdp_version=1, method="dora"),
        *warned("llama-7b", **fsdp, fsdp_version=1, recipe="raw"),
        *warned("llama-7b", **fsdp, method="qlora"),
        *warned("llama-7b", **fsdp, gradient_accumulation=4),
        *warned("llama-7b", engine="trace", parallel="ddp", gpus=2),
        *answer(read("7B LoRA MI300X")).warnings,
        *answer(read("65B QLoRA 48GB?")).warnings,
        *(
            basis(gpu, **shared)
            for gpu in ("t4", "h100-80gb")
            for shared in ({}, {"gpus": 2, "parallel": "ddp"})
        ),
    ]
    shared = memplan.plan("llama-7b", method="lora", gpus=2, parallel="zero3")
    close = close_calls(shared, [replace(find_gpu("l40s"), usable_bytes=shared.peak.device_bytes + 2**20)])
    said += [close] if close else []
    told = {warning: warning_in("zh", warning) for warning in said}
    assert [warning for warning, chinese in told.items() if warning == chinese] == []
    for warning, chinese in told.items():
        assert set(re.findall(r"\d[\d.,%]*", chinese)) == set(re.findall(r"\d[\d.,%]*", warning)), warning
    assert [
        chinese for chinese in warnings().values() if not any(like(chinese, text) for text in told.values())
    ] == []


def like(template: str, text: str) -> bool:
    return re.fullmatch(re.sub(r"\\\{\w+\\\}", ".+", re.escape(template)), text) is not None


def test_a_warning_without_chinese_is_told_in_english():
    assert warning_in("zh", "no such warning") == "no such warning"


@pytest.mark.parametrize(
    "sentence, options",
    [
        ("7B LoRA checkpointing on a T4", {"checkpointing": "non_reentrant"}),
        ("7B LoRA on an H100", {}),
        ("7B LoRA 24GiB", {"gpu": "24GiB"}),
    ],
)
def test_an_answer_is_what_plan_says_of_the_card(sentence, options):
    """The GPU chooses kernels: a T4 has no fused attention in bfloat16."""
    found = answer(read(sentence))
    planned = memplan.plan("llama-7b", method="lora", **{"gpu": found.question.gpu, **options})
    assert (found.prediction.peak, found.verdict) == (planned.peak, planned.gpus[0].verdict)


@pytest.mark.parametrize(
    ("sentence", "step"),
    [
        ("Gemma 4 31B LoRA 80GB?", "memplan gemma-4-31b --method lora --gpu 80gb traces it"),
        ("Ministral 3 8B QLoRA 12GB?", "memplan ministral-3-8b --method qlora --gpu 12gb traces it"),
        ("EXAONE 4 32B LoRA 80GB?", "memplan exaone-4.0-32b --method lora --gpu 80gb traces it"),
    ],
)
def test_a_family_that_only_the_trace_knows_is_refused_with_the_command_that_answers(sentence, step, capsys):
    assert run(["ask", sentence]) == 2
    said = capsys.readouterr().err
    assert step in said and "--engine" not in said
