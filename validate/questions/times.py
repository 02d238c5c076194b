"""Answers about time and cost: no time is predicted, so that published runs of LoRA and QLoRA are what there is."""

from __future__ import annotations

import re

from memplan.planner.tables.errors import UsageError
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.published import times
from memplan.validate.questions.question import Question
from memplan.validate.questions.reply import Reply, Row, both

_NOTHING = both("", "")


def time(question: Question, context: EvaluationContext) -> Reply:
    """How much longer QLoRA takes than LoRA, in published pairs of runs. Raises UsageError for other times."""
    sentence = question.sentence.lower()
    if not re.search(r"q-?lora|4[- ]?bit|nf4|量化", sentence):
        raise UsageError(
            "ask: times are not predicted: published are pairs of LoRA and QLoRA runs, and memplan profile measures yours"
        )
    found = sorted(times(), key=lambda pair: pair.qlora / pair.lora)
    low, high = (pair.qlora / pair.lora for pair in (found[0], found[-1]))
    rows = tuple(
        Row(
            both(p.id, p.id),
            f"{p.qlora / p.lora:.3f}x ({p.qlora:g} / {p.lora:g} {p.unit})",
            both(p.source, p.source),
        )
        for p in found
    )
    why_en = ": each use of a 4-bit weight dequantizes it first" if question.intent == "why" else ""
    why_zh = "：每次用到 4 位权重都要先反量化" if question.intent == "why" else ""
    line = both(
        f"QLoRA took {low:.2f} to {high:.2f} times as long as LoRA in {len(found)} published pairs of runs{why_en}",
        f"{len(found)} 组公开的成对运行中，QLoRA 用时是 LoRA 的 {low:.2f} 到 {high:.2f} 倍{why_zh}",
    )
    return Reply(question, line, rows=rows)


def cost(question: Question, context: EvaluationContext) -> Reply:
    """What a run costs needs its time, which is not predicted. Raises UsageError, always."""
    raise UsageError(
        "ask: what a run costs depends on its time, which is not predicted: memplan profile measures seconds a step; "
        "multiply by the steps and the price"
    )
