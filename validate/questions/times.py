"""Answers about time and cost: the estimate of a step where a GPU is named, and published pairs of runs where
QLoRA is compared with LoRA.
"""

from __future__ import annotations

import re

from memplan.planner.answers.cost import cost as estimate
from memplan.planner.tables.errors import UsageError
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.published import times
from memplan.validate.questions.question import Question
from memplan.validate.questions.reply import Reply, Row, both, predicted

_COMPARED = r"slow|fast|than|compared|versus|\bvs\b|慢|快|比"
_QUANTIZED = r"q-?lora|4[- ]?bit|nf4|量化"
NEEDS_GPU = (
    "ask: a time is an estimate for a model on a GPU: name both, or ask how much slower QLoRA is than LoRA"
)


def time(question: Question, context: EvaluationContext) -> Reply:
    """A step's time on the GPU named, or how much longer QLoRA takes than LoRA. Raises UsageError for other
    times.
    """
    sentence = question.sentence.lower()
    if re.search(_COMPARED, sentence) and re.search(_QUANTIZED, sentence):
        return _published(question)
    return _step(question, context)


def _published(question: Question) -> Reply:
    """By model and GPU, as others measured it: the source stands beside each."""
    found = sorted(((one.pair("qlora", "lora"), one) for one in times("qlora", "lora")), key=lambda p: p[0])
    low, high = found[0][0][0], found[-1][0][0]
    rows = tuple(
        Row(
            both(one.id, one.id),
            f"{ratio:.3f}x ({slow:g} / {fast:g} {one.unit})",
            both(one.source, one.source),
        )
        for (ratio, slow, fast), one in found
    )
    why_en = ": each use of a 4-bit weight dequantizes it first" if question.intent == "why" else ""
    why_zh = "：每次用到 4 位权重都要先反量化" if question.intent == "why" else ""
    line = both(
        f"QLoRA took {low:.2f} to {high:.2f} times as long as LoRA in {len(found)} published pairs of runs{why_en}",
        f"{len(found)} 组公开的成对运行中，QLoRA 用时是 LoRA 的 {low:.2f} 到 {high:.2f} 倍{why_zh}",
    )
    return Reply(question, line, rows=rows)


def _step(question: Question, context: EvaluationContext) -> Reply:
    """The estimate of one optimizer step, least and most. Raises UsageError without a model or a GPU."""
    defaulted = any(a.name == "model" and not a.words for a in question.assumptions)
    if question.gpu is None or defaulted:
        raise UsageError(NEEDS_GPU)
    prediction = predicted(question, context)
    found = estimate(context.spec(question.model), prediction, context.gpu(question.gpu))
    if found.step_seconds is None or found.tokens_per_second is None:
        raise UsageError(f"ask: no time is estimated: {found.why}")
    least, most = found.step_seconds
    slow, fast = found.tokens_per_second
    method, model, gpu = question.fields["method"], question.model, question.gpu
    line = both(
        f"{method} on {model} ({gpu}): {least:.2g} to {most:.2g} s a step of {found.tokens_per_step:,} tokens, "
        f"{slow:,.0f} to {fast:,.0f} tokens a second, an estimate",
        f"{model} 做 {method}（{gpu}）：每步 {found.tokens_per_step:,} 个 token，{least:.2g} 到 {most:.2g} 秒，"
        f"每秒 {slow:,.0f} 到 {fast:,.0f} 个 token，为估计值",
    )
    basis = Row(both("rests on", "依据"), found.why, both("", ""))
    return Reply(question, line, rows=(basis,))


def cost(question: Question, context: EvaluationContext) -> Reply:
    """What a run costs needs its tokens and a price: the time of a step, and the command that takes them."""
    reply = _step(question, context)
    method = question.fields["method"]
    command = (
        f"memplan plan {question.model} --method {method} --gpu {question.gpu} --tokens 10M --price 1.99/h"
    )
    more = Row(both("with your tokens and price", "给出 token 数与单价"), command, both("", ""))
    return Reply(question, reply.line, rows=(*reply.rows, more))
