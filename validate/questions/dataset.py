"""A question about a dataset whose lengths are known: it is asked of the longest batch."""

from __future__ import annotations

from dataclasses import replace

from memplan.planner.inputs.batches import loader_of
from memplan.planner.inputs.lengths import Lengths
from memplan.planner.tables.errors import UsageError
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.questions.question import LARGEST, Question
from memplan.validate.reading import Assumption

ASKED = ("fits", "need", "micro_batch", "cards")


def with_lengths(question: Question, lengths: Lengths, context: EvaluationContext) -> Question:
    """The question with the longest batch of such lengths; a length that it says cuts rows off. Raises
    UsageError where it does not ask for memory.
    """
    if question.intent not in ASKED or not question.model or question.gpus:
        raise UsageError(
            "ask: --lengths goes with a question whether a training fits, what it needs, or the largest batch"
        )
    setup = context.setup(question.model, question.fields)
    loader = loader_of(lengths, setup, context.spec(question.model).max_positions)
    applied = loader.applied(setup)
    batches = loader.batches(applied)
    fields = {**question.fields, "sequence_length": applied.sequence_length, "padded": applied.padded}
    often = 1 / batches.at_least(batches.worst) if not loader.packs else 1.0
    tokens = f"{applied.sequence_length:,}"
    said = Assumption(
        "sequence_length",
        f"{tokens}, the longest batch: 1 step in {often:,.0f}",
        lengths.source,
        f"{tokens}，最长的一批：每 {often:,.0f} 步一次",
    )
    kept = tuple(each for each in question.assumptions if each.name not in LARGEST[:1])
    return replace(question, fields=fields, assumptions=(*kept, said), loader=loader)
