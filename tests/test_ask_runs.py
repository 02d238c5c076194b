"""Questions about a task, a run's length and price, and what fits with changes: nothing is dropped."""

from __future__ import annotations

import re

import pytest

from memplan.planner.tables.errors import UsageError
from memplan.validate.ask import read
from memplan.validate.questions.replies import ask


@pytest.mark.parametrize(
    ("sentence", "task"),
    [
        ("Will DPO of llama-3.1-8b with LoRA fit on an A100 80GB?", "dpo"),
        ("llama-7b 做 KTO，LoRA，24G 够吗", "kto"),
        ("GKD of qwen2.5-7b with qlora on a 4090?", "gkd"),
        ("Does PRM training of qwen3-0.6b fit on a 4090?", "prm"),
        ("训练一个 8B 的奖励模型，24G 够吗", "reward"),
        ("sequence classification with mistral-7b qlora on a t4?", "classify"),
    ],
)
def test_a_task_is_that_task(sentence, task):
    question = read(sentence)
    assert question.fields["task"] == task and not question.left.words
    (reply,) = ask(sentence)
    supervised = ask(sentence.replace("DPO of", "SFT of"))[0] if task == "dpo" else None
    assert task in reply.line[question.lang] and reply.answer is not None
    if supervised is not None:
        assert supervised.answer is not None and supervised.answer.device != reply.answer.device


def test_a_task_is_compared_with_supervised_training():
    (reply,) = ask("how much more memory does DPO need than SFT for llama-7b lora")
    assert reply.line["en"].startswith("task dpo against task sft") and "more" in reply.line["en"]
    with pytest.raises(UsageError, match="what is compared with what"):
        ask("does DPO with LoRA on 7B need twice the memory")  # of SFT, or of full fine-tuning?


def test_where_not_all_is_counted_no_length_is_said_to_fit():
    (reply,) = ask("GKD of qwen2.5-7b with qlora on a 4090?")
    assert reply.answer is not None and reply.answer.verdict == "at least" and not reply.answer.boundaries


def test_a_sampled_task_has_a_length_and_a_batch_up_to_which_it_fits():
    (reply,) = ask("GRPO of qwen2.5-7b with qlora on a 4090?")
    assert reply.answer is not None and {name for name, _ in reply.answer.boundaries} >= {
        "sequence_length",
        "micro_batch",
    }


def test_a_run_of_so_many_tokens_takes_its_time_and_costs_its_price():
    sentence = "how much does lora on llama-3.1-8b cost on 10M tokens on an h100 at 2 dollars per hour"
    (reply,) = ask(sentence)
    (twice,) = ask(sentence.replace("10M", "20M").replace("2 dollars", "$4"))
    assert reply.question.tokens == 10_000_000 and reply.question.price == 2.0 and not reply.not_used
    words = r"([\d,]+) tokens take [\d.]+ to [\d.]+ minutes and cost ([\d.]+) to ([\d.]+) at (\d) an hour"
    once, four = (re.search(words, each.line["en"]).groups() for each in (reply, twice))
    assert (once[0], once[3], four[0], four[3]) == ("10,000,000", "2", "20,000,000", "4")
    for one, other in zip(once[1:3], four[1:3], strict=True):  # twice the tokens at twice the price
        assert float(other) == pytest.approx(4 * float(one), rel=0.05)
    (chinese,) = ask("用 4090 QLoRA 微调 llama-7b，1 亿 token，每小时 2 元，多少钱")
    assert chinese.question.tokens == 100_000_000 and chinese.question.price == 2.0
    assert "天，每小时 2 时花费" in chinese.line["zh"]
    assert not any("estimate" in row.remark["zh"] for row in chinese.rows)


def test_a_time_says_whether_the_run_fits_at_all():
    (reply,) = ask("how long does full fine-tuning of llama-7b take on a 4090")
    assert reply.rows[-1].remark["en"].startswith("does not fit")


def test_a_length_beside_a_question_of_memory_is_refused():
    with pytest.raises(UsageError, match="decides no memory"):
        ask("is 24GB enough for llama-7b lora on 10M tokens")


def test_beside_a_no_stands_what_would_fit():
    (reply,) = ask("Can I fine-tune qwen3-8b with QLoRA on a 12GB card?")
    assert reply.line["en"].endswith(
        "with --loss chunked --set kbit_prepare=false it needs 8.55 GiB, which fits"
    )
    (smaller,) = ask("Can I fine-tune llama-3.1-70b with QLoRA on a 12GB card?")
    assert "which fits" not in smaller.line["en"]


@pytest.mark.parametrize(
    ("sentence", "task"),
    [
        ("Can I train llama-3.1-8b with RLOO on an A100 80GB?", "rloo with lora"),
        ("Does an embedding model from qwen3-0.6b with lora fit on a 4090?", "embed with lora"),
    ],
)
def test_a_newer_task_is_answered(sentence, task):
    (reply,) = ask(sentence)
    assert task in reply.line["en"]


def test_a_distillation_needs_its_teacher():
    with pytest.raises(UsageError, match="--set teacher=MODEL"):
        ask("Can I distill into llama-3.2-1b on an A100 80GB?")


def test_a_task_of_the_trace_alone_is_refused_with_its_command():
    with pytest.raises(UsageError, match="memplan qwen2.5-7b --task ppo --method lora"):
        ask("PPO of qwen2.5-7b with lora on a 4090?")
