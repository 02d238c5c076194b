"""A reply: one sentence in both languages, whether the sentence that was asked holds, and the rows beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from memplan.planner import __version__
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.methods import METHODS
from memplan.validate.answer import SCHEMA, Answer, on_gpu, shared
from memplan.validate.chinese import in_language
from memplan.validate.engines import Missing
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.questions.question import Question, doing

Both = Mapping[str, str]
"""A text by language: en, zh."""


def both(en: str, zh: str) -> Both:
    """A text in English and in Chinese."""
    return {"en": en, "zh": zh}


def in_words(value: str, lang: str) -> str:
    """A number in words with its unit in the language."""
    for unit in (" B/parameter", " bits/parameter"):
        value = value.replace(unit, in_language(lang)(unit))
    return value


@dataclass(frozen=True)
class Row:
    """One line beside a reply: what, the number in words, and a remark; `bytes` where it is a size."""

    what: Both
    value: str
    remark: Both
    bytes: int | None = None


@dataclass(frozen=True)
class Reply:
    """What is answered to one question. `holds`: whether the sentence is true as asked, where it says yes or
    no; None where it asks for a number, depends, or was not fully understood. `answer`: the verdict on a GPU.
    """

    question: Question
    line: Both
    holds: bool | None = None
    rows: tuple[Row, ...] = ()
    answer: Answer | None = None

    @property
    def not_used(self) -> tuple[str, ...]:
        """The content words of the sentence that the reply does not use."""
        return self.question.left.words

    def to_document(self) -> dict[str, Any]:
        """The document of `memplan ask --json` (schema memplan.ask/1); sizes are in bytes."""
        question = self.question
        whole: dict[str, Any] = (
            self.answer.to_document()
            if self.answer is not None
            else {
                "schema": SCHEMA,
                "memplan_version": __version__,
                "sentence": question.sentence,
                "lang": question.lang,
                "wanted": None,
                "model": question.model or None,
                "gpu": question.gpu,
                "assumptions": [
                    {"name": a.name, "value": a.value, "words": a.words or None} for a in question.assumptions
                ],
                "verdict": None,
            }
        )
        return {
            **whole,
            "intent": question.intent,
            "negated": question.negated,
            "holds": self.holds,
            "line": dict(self.line),
            "rows": [
                {
                    "what": row.what["en"],
                    "value": row.value,
                    "remark": row.remark["en"] or None,
                    "bytes": row.bytes,
                }
                for row in self.rows
            ],
            "not_used": list(self.not_used),
        }


def predicted(
    question: Question, context: EvaluationContext, model: str | None = None, **changes: Any
) -> Prediction:
    """The prediction of a question's setup with changes. Raises UsageError where there is none."""
    asked = question if model is None else replace(question, model=model)
    try:
        fields = shared(asked, {**question.fields, **changes}, context)
        return context.predict(asked.model, on_gpu(question, fields))
    except Missing as missing:
        raise UsageError(f"ask: {missing}") from None


def settings(question: Question) -> list[tuple[Both, dict[str, Any]]]:
    """The settings that a question leaves open and that a number hangs on: as said, or both without and with
    gradient checkpointing (and, of full fine-tuning, both precisions of the weights).
    """
    fields = question.fields
    found: list[tuple[Both, dict[str, Any]]] = [(both("as said", "按所述"), {})]
    if METHODS[fields["method"]].trains == "nothing":
        return found
    if fields["method"] == "full" and "weight_dtype" not in fields:
        found = [
            (both("fp32 weights, autocast", "fp32 权重，自动混合精度"), {"weight_dtype": "float32"}),
            (both("bf16 weights", "bf16 权重"), {"weight_dtype": "bfloat16"}),
        ]
    if "checkpointing" in fields:
        return found
    options = ("none", "non_reentrant")
    words = {
        "none": both("without checkpointing", "不开检查点"),
        "non_reentrant": both("with checkpointing", "开检查点"),
    }
    return [
        (_joined(what, words[option]), {**changes, "checkpointing": option})
        for what, changes in found
        for option in options
    ]


def _joined(what: Both, more: Both) -> Both:
    if what["en"] == "as said":
        return more
    return both(f"{what['en']}, {more['en']}", f"{what['zh']}，{more['zh']}")


def subject(question: Question) -> Both:
    """`lora on llama-7b`, and what else was said of it."""
    does, model = doing(question.fields), question.model
    return both(f"{does['en']} on {model}", f"{model} 做 {does['zh']}")
