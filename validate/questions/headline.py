"""The first line of an answer about a GPU: yes or no where that was asked and every word was used; a number
where one was asked; whether a denial is true.
"""

from __future__ import annotations

from memplan.planner.answers.parts import parts
from memplan.planner.tables.gpus import find_gpu
from memplan.planner.tables.units import gib
from memplan.validate.answer import AT_LEAST, Answer
from memplan.validate.questions.question import doing
from memplan.validate.questions.reply import Both, both
from memplan.validate.summary import summary_line

SPARED = "checkpointing"


def headline(found: Answer) -> Both:
    """The answer in one sentence, in both languages."""
    question = found.question
    if found.usable is None or question.wanted:
        return summary_line(found)
    if not question.says_yes_or_no:
        return _numbers(found)
    if question.negated:
        return _denied(found)
    line = summary_line(found)
    spared = both("", "") if "which fits" in line["en"] else _also(found)
    more = _step_alone(found) or spared
    return both(line["en"] + more["en"], line["zh"] + more["zh"])


def _numbers(found: Answer) -> Both:
    """What it needs and what there is, with neither yes nor no."""
    question, usable = found.question, found.usable
    does, model, need = doing(question.fields), question.model, gib(found.device)
    assert usable is not None
    en = f"{does['en']} on {model} needs {need}; {question.gpu} has {gib(usable)} usable"
    zh = f"{model} 做 {does['zh']} 需要 {need}；{question.gpu} 可用 {gib(usable)}"
    if question.left.changes:
        words = ", ".join(question.left.changes)
        en += f". Neither yes nor no, since this was not understood: {words}"
        zh += f"。有未读懂的词，不下结论：{words}"
    more = _also(found)
    return both(en + more["en"], zh + more["zh"])


def _denied(found: Answer) -> Both:
    """A sentence that says that it does not fit: whether that is true, and whether it stays so."""
    usable = found.usable
    assert usable is not None
    need = f"{gib(found.device)} of {gib(usable)}"
    if found.verdict == AT_LEAST:
        return summary_line(found)
    if found.verdict != "no" and not found.survives:
        return both(
            f"Probably true: as predicted it does not fit, {need} ({found.question.gpu})",
            f"多半对：按预测放不下，{need}（{found.question.gpu}）",
        )
    if found.verdict != "no":
        how_en, how_zh = ("barely ", "勉强") if found.verdict == "tight" else ("", "")
        return both(
            f"Not true: it {how_en}fits, {need} ({found.question.gpu})",
            f"不对：{how_zh}放得下，{need}（{found.question.gpu}）",
        )
    more = _also(found)
    return both(
        f"True as asked: it does not fit, {need} ({found.question.gpu}){more['en']}",
        f"对：按所述放不下，{need}（{found.question.gpu}）{more['zh']}",
    )


def _also(found: Answer) -> Both:
    """Beside a no by default: what gradient checkpointing makes of it, where it was not spoken of."""
    if found.verdict != "no" or "checkpointing" in found.question.fields:
        return both("", "")
    method, own = found.prediction.setup.method, f"{found.prediction.setup.method}, {SPARED}"
    row = next((b for b in found.beside if b.what in (own, f"{method}, bf16 weights, {SPARED}")), None)
    if row is None or found.prediction.setup.checkpointing != "none":
        return both("", "")
    if row.verdict != "no":
        return (
            both("", "")
            if not found.question.negated
            else both(
                f"; not true with checkpointing: {gib(row.device)} fits",
                f"；开检查点则不对：{gib(row.device)} 放得下",
            )
        )
    limit = dict(found.boundaries).get("sequence_length, checkpointing on")
    upto = limit.boundaries[-1].low if limit is not None and limit.boundaries else None
    if upto is None:
        return both(
            f"; with checkpointing neither ({gib(row.device)})", f"；开检查点也不行（{gib(row.device)}）"
        )
    return both(
        f"; with checkpointing {gib(row.device)}, which fits up to {upto:,} tokens only",
        f"；开检查点 {gib(row.device)}，序列最长 {upto:,} 时放得下",
    )


def _step_alone(found: Answer) -> Both | None:
    """Where loading needs more than the training step: both, and whether the step alone would fit."""
    prediction, usable = found.prediction, found.usable
    if found.verdict != "no" or usable is None or prediction.peak.moment == prediction.step_peak.moment:
        return None
    apart = parts(prediction, find_gpu(str(found.question.gpu)))
    if apart is None:
        return None
    step = apart.step_bytes
    fits_en, fits_zh = {
        "fits": ("fits", "放得下"),
        "tight": ("does not surely fit either", "也不一定放得下"),
        "no": ("does not fit either", "也放不下"),
    }[apart.step]
    return both(
        f". Loading decides ({gib(found.device)}); the training step alone needs {gib(step)}, which {fits_en}",
        f"。决定的是加载（{gib(found.device)}）；训练步本身需要 {gib(step)}，{fits_zh}",
    )
