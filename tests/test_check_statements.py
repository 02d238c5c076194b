"""`memplan check` reads statements of numbers: what a model weighs, what a component takes, what LoRA trains,
what a run needs. Each is judged by the engines: another number turns the verdict.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.texts.check import check_text, read_sentence
from memplan.validate.texts.sentences import sentences
from memplan.validate.texts.slots import plain, value_of
from memplan.validate.texts.statements import _table
from memplan.validate.texts.stating import KINDS

LINES = (Path(__file__).parent / "texts" / "statements.tsv").read_text(encoding="utf-8").splitlines()
SAID = [line.split("\t") for line in LINES if not line.startswith("# ")]


@pytest.fixture(scope="module")
def context() -> EvaluationContext:
    return EvaluationContext()


def read(text: str) -> list[str]:
    return [claim.reading for one in sentences(text) for claim in read_sentence(one)[0]]


@pytest.mark.parametrize(("kind", "text", "right"), SAID)
def test_no_statement_is_misread(kind: str, text: str, right: str) -> None:
    assert "; ".join(read(text)) in ("", "" if right == "none" else right)


def test_most_statements_are_read_in_both_languages() -> None:
    for chinese in (False, True):
        stating = [(t, r) for _, t, r in SAID if r != "none" and any(c >= "\u4e00" for c in t) == chinese]
        assert len(stating) >= 20
        assert sum("; ".join(read(t)) == r for t, r in stating) / len(stating) >= 0.9


def test_every_kind_has_a_maker_and_a_wording() -> None:
    kinds, macros, english, chinese = _table()
    assert [kind.id for kind in kinds] and {kind.id for kind in kinds} == set(KINDS)
    assert macros and english and chinese


JUDGED = [
    ("Llama-2-7B has {} billion parameters.", "6.74", "13.5"),
    ("In bf16, the weights of Llama-3-8B take about {} GiB.", "15", "30"),
    ("Full fine-tuning with AdamW in mixed precision takes {} bytes per parameter.", "16", "8"),
    ("全量微调在纯bf16下每个参数占{}字节。", "8", "16"),
    ("In mixed-precision training the fp32 master weights need {} bytes per parameter.", "4", "2"),
    ("With rank 8 on q_proj and v_proj of Llama-2-7B you train about {} million parameters.", "4.2", "8.4"),
    ("在Llama-2-7B的q、v投影上取r=8，可训练参数约{}万，占总量的0.06%左右。", "419", "838"),
    ("For Llama-2-7B with r=8 on q and v there are {} million trainable parameters.", "4.19", "2.1"),
    ("Double quantization saves about {} GB on a 65B model.", "3", "6"),
    ("The quantization constants of NF4 add {} bits per parameter.", "0.5", "1"),
    ("双重量化把开销从0.5比特降到{}比特。", "0.127", "0.25"),
    ("The fp32 logits of a 2,048-token sequence take {} GiB for Llama-3-8B.", "0.98", "2"),
    ("Qwen2.5-7B的词表大小为{}。", "152064", "151643"),
    ("The KV cache of Llama-2-7B at 4,096 tokens takes {} GiB.", "2", "4"),
    ("Llama-3-8B的KV缓存在8192个token时约{} GiB。", "1", "4"),
    ("Gradients and Adam states of 40 million parameters take {} GB.", "0.48", "1"),
]


@pytest.mark.parametrize(("text", "right", "wrong"), JUDGED)
def test_another_number_turns_the_verdict(
    text: str, right: str, wrong: str, context: EvaluationContext
) -> None:
    for value, status in ((right, "supported"), (wrong, "refuted")):
        (one,) = check_text(text.format(value), context)
        assert one.status == status, [(r.claim.reading, r.evidence) for r in one.results]


def test_what_the_text_leaves_open_is_a_case(context: EvaluationContext) -> None:
    """A rank-16 adapter of 80 MB is one on all linear layers; on q and v it has 17 MB."""
    (one,) = check_text("7B模型r=16的适配器文件以bf16保存约80 MB。", context)
    assert one.status == "depends"
    cases = {part.part.case: part.verdict for part in one.results[0].parts}
    assert cases == {"on all linear layers": "supported", "on q and v": "refuted"}


def test_activations_grow_with_the_length_unless_scores_are_kept(context: EvaluationContext) -> None:
    """Twice for sdpa, three times for eager attention, whose scores are quadratic; never four times."""
    verdicts = {}
    for factor in ("doubles", "quadruples"):
        (one,) = check_text(f"Going from 1,024 to 2,048 tokens {factor} activation memory.", context)
        verdicts[factor] = {part.part.case: part.verdict for part in one.results[0].parts}
    assert verdicts["doubles"] == {"sdpa attention": "supported", "eager attention": "refuted"}
    assert set(verdicts["quadruples"].values()) == {"refuted"}


def test_zero_three_divides_states_and_no_activations(context: EvaluationContext) -> None:
    text = "ZeRO-3在8卡上可使每卡的模型状态降到约八分之一，激活值也同样降到八分之一。"
    (one,) = check_text(text, context)
    assert [result.verdict for result in one.results] == ["supported", "refuted"]


def test_a_gpu_is_asked_under_the_precision_that_the_bytes_stand_for(context: EvaluationContext) -> None:
    """16 bytes per parameter are fp32 weights, gradients and two moments; 7 are no precision of ours."""
    text = (
        "全参数微调时每个参数约占{}字节。照此计算，Llama-2-7B（67.4亿参数）仅这几项就需要约100 GiB，"
        "一张A100 80GB放不下。"
    )
    last = check_text(text.format(16), context)[-1]
    assert [result.verdict for result in last.results] == ["supported"] * 3
    assert {part.part.setup["weight_dtype"] for part in last.results[2].parts} == {"float32"}
    assert check_text(text.format(7), context)[-1].results == ()


CARRIED = [
    (
        "With rank 8 on q and v of Llama-2-7B you train 4.2 million parameters. With rank 16 on all linear "
        "layers it is closer to 40 million.",
        "LoRA rank 16 on all linear layers of llama-2-7b trains about 40,000,000 parameters",
    ),
    (
        "With rank 8 on q and v of Llama-2-7B or of a 13B you train few parameters. With rank 16 on all "
        "linear layers it is closer to 40 million.",
        "",
    ),
    ("LoRA trains parameters. With rank 16 on all linear layers it is closer to 40 million.", ""),
    (
        "DoRA trains parameters of a 7B model. With rank 16 on all linear layers it is closer to 40 million.",
        "",
    ),
]


@pytest.mark.parametrize(("text", "last"), CARRIED)
def test_a_model_is_carried_only_where_one_alone_was_named(text: str, last: str) -> None:
    assert "".join(c.reading for c in read_sentence(list(sentences(text))[-1])[0]) == last


@pytest.mark.parametrize(
    ("text", "meant"),
    [("6.74 billion", "6740000000"), ("just under 4.2 million", "about 4200000"), ("419万", "4190000")],
)
def test_counts_are_written_out(text: str, meant: str) -> None:
    assert plain(text) == meant


@pytest.mark.parametrize(
    ("slot", "text", "meant"),
    [
        ("model", "llama 2 7b", "llama-2-7b"),
        ("model", "a 7b", None),
        ("rank", "rank-16", 16),
        ("targets", "q、v投影", ("q_proj", "v_proj")),
        ("gpu", "16 gb的t4", "t4"),
        ("gpu", "24 gb t4", None),
        ("sequence", "长2048的序列", 2048),
        ("family", "llama-3", "llama-3-8b"),
    ],
)
def test_a_slot_means_what_it_names(slot: str, text: str, meant: object) -> None:
    assert value_of(slot, text) == meant
