"""From a sentence to its replies: one function for each kind of question."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from memplan.planner.inputs.families.table import FAMILIES, language_part
from memplan.planner.inputs.lengths import Lengths
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.tasks import TASKS
from memplan.validate.answer import answer
from memplan.validate.ask import read_all
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.questions.amounts import file_size, kv_cache, parameters, saving
from memplan.validate.questions.claim_reply import claim
from memplan.validate.questions.dataset import with_lengths
from memplan.validate.questions.headline import headline
from memplan.validate.questions.question import Question
from memplan.validate.questions.ranges import by_class, largest_model
from memplan.validate.questions.reply import Reply
from memplan.validate.questions.times import cost, time


def memory(question: Question, context: EvaluationContext) -> Reply:
    """A verdict on a GPU, or what is needed where none is named."""
    if question.gpus and question.intent == "fits":
        return by_class(question, context)
    found = answer(question, context)
    yes = {"fits": True, "tight": True, "no": False}.get(found.verdict)
    holds = None if yes is None or not question.says_yes_or_no else yes != question.negated
    return Reply(found.question, headline(found), holds, answer=found)


def why(question: Question, context: EvaluationContext) -> Reply:
    """Why something is slower: the measured times; why it needs so much: the rows of the answer."""
    slow = re.search(r"slow|fast|speed|time|慢|快|时间|速度", question.sentence.lower())
    return time(question, context) if slow else memory(question, context)


REPLIES: dict[str, Callable[[Question, EvaluationContext], Reply]] = {
    "fits": memory,
    "need": memory,
    "cards": memory,
    "sequence_length": memory,
    "micro_batch": memory,
    "claim": claim,
    "saving": saving,
    "parameters": parameters,
    "file": file_size,
    "kv_cache": kv_cache,
    "largest_model": largest_model,
    "time": time,
    "cost": cost,
    "why": why,
}


def ask(
    sentence: str,
    lang: str | None = None,
    context: EvaluationContext | None = None,
    lengths: Lengths | None = None,
) -> list[Reply]:
    """The replies to a sentence, in its order, for a dataset of such lengths where they are given. Raises
    UsageError for what was not understood or cannot be predicted.
    """
    context = context or EvaluationContext()
    questions = read_all(sentence, lang)
    if lengths is not None:
        questions = tuple(with_lengths(question, lengths, context) for question in questions)
    return [_reply(question, context) for question in questions]


def _reply(question: Question, context: EvaluationContext) -> Reply:
    if question.model and REPLIES[question.intent] is memory:
        _refuse_unknown_family(question, context)
    return REPLIES[question.intent](question, context)


def _traces(question: Question) -> str:
    """The command that traces what is asked."""
    said = {f"--{key}": question.fields.get(key) for key in ("task", "method")}
    said["--images"] = ",".join(question.fields.get("images", ()))
    words = [f"{option} {value}" for option, value in (*said.items(), ("--gpu", question.gpu)) if value]
    return " ".join(["memplan", question.model or "MODEL", *words])


def _refuse_unknown_family(question: Question, context: EvaluationContext) -> None:
    """A verdict rests on the formula (limits, the other methods, the sum by hand): where it has no rule for the
    model's family, the command that traces the model is named. Raises UsageError.
    """
    task = TASKS[question.fields.get("task") or "sft"]
    if not task.formula and not task.lacks:
        beside = f" --set {task.companion}=MODEL" if task.companion else ""
        raise UsageError(
            f"ask: the formula, with which questions are answered, has no rule for task {task.name}: "
            f"{_traces(question)}{beside} traces it"
        )
    if question.fields.get("images"):
        raise UsageError(
            "ask: the formula, with which questions are answered, has no rule for pictures and videos: "
            f"{_traces(question)} traces them"
        )
    config = context.model(question.model).config
    if language_part(config).get("model_type") in FAMILIES:
        return
    raise UsageError(
        "ask: the formula, with which questions are answered, has no rule for the family of "
        f"{question.model}: {_traces(question)} traces it"
    )


def to_document(replies: Sequence[Reply]) -> dict[str, Any]:
    """The document of `memplan ask --json`: of one question its own, of several the first's head and `answers`,
    with no verdict over all.
    """
    first = replies[0].to_document()
    if len(replies) == 1:
        return first
    head = {key: first[key] for key in ("schema", "memplan_version", "sentence", "lang")}
    return {**head, "verdict": None, "answers": [reply.to_document() for reply in replies]}
