"""Values that a sentence claims, against what is found: each reading of the sentence is a row, and where the
readings differ, it depends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from memplan.planner.prediction import Prediction
from memplan.planner.tables.components import HELD_ACROSS_STEPS
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.units import gib
from memplan.validate.claimsfile import UNITS
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.questions.claimed import ABOUT, ClaimedValue
from memplan.validate.questions.question import Question
from memplan.validate.questions.reply import Both, Reply, Row, both, in_words, predicted, settings, subject
from memplan.validate.reading import Assumption
from memplan.validate.sweep import holds

_STATES = HELD_ACROSS_STEPS
_VERDICT: dict[bool | None, Both] = {
    True: both("Holds", "成立"),
    False: both("Does not hold", "不成立"),
    None: both("Depends", "视条件"),
}
_EACH = {True: both("holds", "成立"), False: both("fails", "不成立")}


@dataclass(frozen=True)
class Finding:
    """One reading of a claim: the number found, in the claim's unit, and its size in bytes where it is one."""

    what: Both
    value: float
    shown: str
    bytes: int | None = None


def claim(question: Question, context: EvaluationContext) -> Reply:
    """Every claimed value against every reading; together they hold, fail, or depend."""
    question = _assumed(question)
    rows, verdicts, found = [], [], None
    for value in question.claimed:
        for finding in _FINDERS[value.of, value.against](question, value, context):
            true = holds(finding.value, value.value, value.relation, ABOUT if value.relation == "=" else 0.0)
            verdicts.append(true)
            rows.append(Row(finding.what, finding.shown, _remark(value, true), finding.bytes))
            if found is None or (true is False and verdicts.count(False) == 1):
                found = finding
    held = verdicts[0] if len(set(verdicts)) == 1 else None
    if question.left.changes:
        held = None
    said = subject(question)
    assert found is not None
    truth = held if held is None or not question.negated else not held
    words, chinese = _VERDICT[truth]["en"], _VERDICT[truth]["zh"]
    line = both(
        f"{words}: for {said['en']}, {found.what['en']} is {found.shown}, against {_claimed(question, 'en')}",
        f"{chinese}：{said['zh']}，{found.what['zh']}为 {in_words(found.shown, 'zh')}，原文 {_claimed(question, 'zh')}",
    )
    return Reply(question, line, truth, tuple(rows))


def _assumed(question: Question) -> Question:
    """Where no method is named: a multiple of the parameters is said of full fine-tuning."""
    if not question.open_method or all(value.against != "parameters" for value in question.claimed):
        return question
    kept = tuple(a for a in question.assumptions if a.name != "method")
    return replace(
        question,
        fields={**question.fields, "method": "full"},
        assumptions=(*kept, Assumption("method", "full")),
    )


def _claimed(question: Question, lang: str) -> str:
    return (" and " if lang == "en" else "、").join(
        dict.fromkeys(_amount(value, lang) for value in question.claimed)
    )


def _amount(value: ClaimedValue, lang: str) -> str:
    sign = {"=": {"en": "about ", "zh": "约 "}[lang], "<=": "<= ", ">=": ">= "}[value.relation]
    unit = (
        value.unit
        if value.unit in ("%",)
        else {"x": " x" if lang == "en" else " 倍"}.get(value.unit, f" {value.unit}")
    )
    return f"{sign}{value.value:g}{unit}"


def _remark(value: ClaimedValue, true: bool) -> Both:
    near = (
        {"en": f", read: within {ABOUT:.0%}", "zh": f"，按 ±{ABOUT:.0%} 判"}
        if value.relation == "="
        else {"en": "", "zh": ""}
    )
    return both(
        f"{_EACH[true]['en']}: claimed {_amount(value, 'en')}{near['en']}",
        f"{_EACH[true]['zh']}：原文 {_amount(value, 'zh')}{near['zh']}",
    )


def _memory(question: Question, value: ClaimedValue, context: EvaluationContext) -> Iterator[Finding]:
    """The peak on the device by setting; of full fine-tuning first what `bytes per parameter` counts."""
    for what, changes in settings(question):
        prediction = predicted(question, context, **changes)
        if (
            METHODS[prediction.setup.method].trains == "all"
            and changes.get("checkpointing") != "non_reentrant"
        ):
            size = _states(prediction)
            each = size / prediction.model.parameters
            yield Finding(
                both(
                    f"weights, gradients and states ({what['en']})", f"权重、梯度与优化器状态（{what['zh']}）"
                ),
                size / UNITS[value.unit],
                f"{_size(size, value)} ({each:.1f} B/parameter)",
                size,
            )
        size = prediction.peak.device_bytes
        yield Finding(
            both(f"the peak ({what['en']})", f"峰值（{what['zh']}）"),
            size / UNITS[value.unit],
            _size(size, value),
            size,
        )


def _states(prediction: Prediction) -> int:
    """What is held for the parameters alone: the largest sum of weights, gradients and states of a moment."""
    return max(sum(moment.components[name] for name in _STATES) for moment in prediction.moments)


def _size(size: int, value: ClaimedValue) -> str:
    return (
        gib(size)
        if value.unit in ("GiB", "MiB")
        else f"{size / UNITS[value.unit]:,.1f} {value.unit} ({gib(size)})"
    )


def _multiple(question: Question, value: ClaimedValue, context: EvaluationContext) -> Iterator[Finding]:
    """The peak over the parameters: as bytes a parameter, and as a multiple of a 16-bit copy of the weights."""
    for what, changes in settings(question):
        prediction = predicted(question, context, **changes)
        size, count = prediction.peak.device_bytes, prediction.model.parameters
        for name, divisor in (
            (both("bytes per parameter", "每参数字节数"), count),
            (both("times the 16-bit weights", "16 位权重的倍数"), 2 * count),
        ):
            yield Finding(
                both(f"{name['en']} ({what['en']})", f"{name['zh']}（{what['zh']}）"),
                size / divisor,
                f"{size / divisor:.1f} ({gib(size)})",
                size,
            )


def _weights(question: Question, value: ClaimedValue, context: EvaluationContext) -> Iterator[Finding]:
    """The weights alone, as they lie in memory after loading; of a 4-bit base also what 4 bits alone are."""
    fields = question.fields
    quantized = fields["method"] == "qlora"
    kinds: list[tuple[Both, dict[str, Any]]] = (
        [
            (
                both("4-bit weights, constants quantized again", "4 位权重，双重量化"),
                {"quant_type": "nf4", "double_quant": True},
            ),
            (
                both("4-bit weights, plain constants", "4 位权重，不做双重量化"),
                {"quant_type": "nf4", "double_quant": False},
            ),
        ]
        if quantized
        else [(both("weights", "权重"), {})]
    )
    base = replace(
        question, fields={k: v for k, v in fields.items() if k in ("weight_dtype",)} | {"method": "inference"}
    )
    for what, changes in kinds:
        prediction = predicted(base, context, **changes)
        size = max(moment.components["weights"] for moment in prediction.moments)
        bits = 8 * size / prediction.model.parameters
        yield Finding(
            what, size / UNITS[value.unit], f"{_size(size, value)} ({bits:.2f} bits/parameter)", size
        )


def _memory_share(question: Question, value: ClaimedValue, context: EvaluationContext) -> Iterator[Finding]:
    """The peak as a share of full fine-tuning's under the same settings, and the share of the base weights."""
    full = replace(
        question,
        fields={k: v for k, v in question.fields.items() if k not in ("rank", "targets", "quant_type")}
        | {"method": "full"},
    )
    for what, changes in settings(question):
        one, whole = predicted(question, context, **changes), predicted(full, context, **changes)
        size, of = one.peak.device_bytes, whole.peak.device_bytes
        yield Finding(
            both(f"memory of full fine-tuning's ({what['en']})", f"显存占全参数微调的比例（{what['zh']}）"),
            100 * size / of,
            f"{size / of:.1%} ({gib(size)} / {gib(of)})",
            size,
        )
        weights = one.moment(one.peak.moment).components["weights"]
        yield Finding(
            both(
                f"the weights alone, of full fine-tuning's memory ({what['en']})",
                f"仅权重占全参数微调显存的比例（{what['zh']}）",
            ),
            100 * weights / of,
            f"{weights / of:.1%} ({gib(weights)} / {gib(of)})",
            weights,
        )


def _parameter_share(
    question: Question, value: ClaimedValue, context: EvaluationContext
) -> Iterator[Finding]:
    prediction = predicted(question, context)
    trained, total = prediction.trainable_parameters, prediction.total_parameters
    setup = prediction.setup
    adapter = METHODS[setup.method].trains == "adapter"
    more = f", rank {setup.rank} on {', '.join(setup.targets)}" if adapter else ""
    yield Finding(
        both(
            f"the trained share of parameters{more}",
            f"训练参数占比{more.replace(', rank', '，秩').replace(' on ', '，目标层 ')}",
        ),
        100 * trained / total,
        f"{trained / total:.4%} ({trained:,} / {total:,})",
    )


_FINDERS: dict[tuple[str, str], Callable[[Question, ClaimedValue, EvaluationContext], Iterator[Finding]]] = {
    ("memory", ""): _memory,
    ("memory", "parameters"): _multiple,
    ("weights", ""): _weights,
    ("memory_share", ""): _memory_share,
    ("parameters", ""): _parameter_share,
}
