"""Answers about time and cost: the estimate of a step where a GPU is named, and published pairs of runs where
QLoRA is compared with LoRA.
"""

from __future__ import annotations

import re

from memplan.planner.answers.cost import Cost, duration, span
from memplan.planner.answers.cost import cost as estimate
from memplan.planner.answers.verdict import device_bytes, judge
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.units import gib
from memplan.validate.chinese import warning_in
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.published import times
from memplan.validate.questions.question import Question, doing
from memplan.validate.questions.reply import Both, Reply, Row, both, predicted

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
    """The estimate of one optimizer step, least and most, and of the run where its tokens are said. Raises
    UsageError without a model or a GPU.
    """
    defaulted = any(a.name == "model" and not a.words for a in question.assumptions)
    if question.gpu is None or defaulted:
        raise UsageError(NEEDS_GPU)
    prediction = predicted(question, context)
    gpu = context.gpu(question.gpu)
    found = estimate(context.spec(question.model), prediction, gpu, question.tokens, question.price)
    if found.step_seconds is None or found.tokens_per_second is None:
        raise UsageError(f"ask: no time is estimated: {found.why}")
    does, seconds, speed = doing(question.fields), span(found.step_seconds), span(found.tokens_per_second)
    run = _run(found)
    line = both(
        f"{does['en']} on {question.model} ({question.gpu}): {run['en']}{seconds} s a step of "
        f"{found.tokens_per_step:,} tokens, {speed} tokens a second, an estimate",
        f"{question.model} 做 {does['zh']}（{question.gpu}）：{run['zh']}每步 {found.tokens_per_step:,} 个 token，"
        f"{_zh(seconds)} 秒，每秒 {_zh(speed)} 个 token，为估计值",
    )
    basis = Row(both("rests on", "依据"), "", both(found.why, warning_in("zh", found.why)))
    held = judge(prediction, gpu)
    fits = Row(both("does it fit", "放得下吗"), *_fits(held.verdict, device_bytes(prediction, gpu), gpu))
    return Reply(question, line, rows=(basis, fits))


_ZH_UNITS = {"seconds": "秒", "minutes": "分钟", "hours": "小时", "days": "天"}
_VERDICTS = {
    "fits": both("fits", "放得下"),
    "tight": both("tight", "勉强"),
    "no": both("does not fit: such a run ends out of memory", "放不下：这样训练会显存不足"),
    None: both("not all is counted", "并非全部计入"),
}


def _fits(verdict: str | None, need: int, gpu: Gpu) -> tuple[str, Both]:
    return f"{gib(need)} of {gib(gpu.usable_bytes)}", _VERDICTS[verdict]


def _run(found: Cost) -> Both:
    """The whole run's time and price; empty where no tokens were said."""
    if found.hours is None:
        return both("", "")
    time, unit = duration(found.hours)
    money = found.money and span(found.money)
    en = f"{found.tokens:,} tokens take {time} {unit}" + (
        f" and cost {money} at {found.price:g} an hour" if money else ""
    )
    zh = f"{found.tokens:,} 个 token 需 {_zh(time)} {_ZH_UNITS[unit]}" + (
        f"，每小时 {found.price:g} 时花费 {_zh(money)}" if money else ""
    )
    return both(f"{en}; ", f"{zh}；")


def _zh(numbers: str) -> str:
    return numbers.replace(" to ", " 到 ")


def cost(question: Question, context: EvaluationContext) -> Reply:
    """What a run costs: of its tokens and a price; without them the time of a step, and the command that takes
    them.
    """
    reply = _step(question, context)
    if question.tokens is not None and question.price is not None:
        return reply
    method = question.fields["method"]
    tokens, price = question.tokens or "10M", f"{question.price or 1.99:g}/h"
    command = f"memplan plan {question.model} --method {method} --gpu {question.gpu} --tokens {tokens} --price {price}"
    more = Row(both("with your tokens and price", "给出 token 数与单价"), command, both("", ""))
    return Reply(question, reply.line, rows=(*reply.rows, more))
