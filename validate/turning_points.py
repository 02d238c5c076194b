"""Where the verdict of a question flips: the length and the batch up to which it fits, and the changes with
which it does.
"""

from __future__ import annotations

from memplan.planner.answers.fit.changes import remedy
from memplan.planner.answers.fit.decide import Remedy
from memplan.planner.answers.fit.frontier import Room
from memplan.planner.inputs.tasks import shortest
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.tasks import TASKS
from memplan.validate.claimsfile import Over, Part
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.questions.question import Question
from memplan.validate.sweep import PartResult, check_part

LONGEST = 1_048_576


def remedy_of(question: Question, prediction: Prediction, context: EvaluationContext) -> Remedy | None:
    """What makes the setup as asked fit its GPU, and leaves method, batch and sequence alone."""
    setup = prediction.setup
    if setup.gpus > 1 or METHODS[setup.method].trains == "nothing" or prediction.not_modelled:
        return None
    spec, gpu = context.spec(question.model), context.gpu(str(question.gpu))
    try:
        return remedy(spec, setup, Room(gpu).around(spec, setup))
    except UsageError:  # no rule of the formula
        return None


def boundaries_of(
    question: Question, prediction: Prediction, context: EvaluationContext
) -> list[tuple[str, PartResult]]:
    """Where the verdict flips: by sequence, by batch, and with checkpointing on where it is off."""
    limit = context.spec(question.model).max_positions or LONGEST
    asked = [("sequence_length", dict(question.fields), limit), ("micro_batch", dict(question.fields), 4096)]
    found = []
    if prediction.setup.checkpointing == "none" and METHODS[prediction.setup.method].trains != "nothing":
        asked += [
            (name, {**question.fields, "checkpointing": "non_reentrant"}, most) for name, _, most in asked[:2]
        ]
    two = TASKS[prediction.setup.task].divergence  # such a task takes two rows at least
    least = {"sequence_length": shortest(prediction.setup), "micro_batch": 2 if two else 1}
    for name, fields, most in asked:
        part = Part(
            name,
            "fits",
            True,
            model=question.model,
            gpu=question.gpu or "",
            setup=fields,
            over=Over(f"setup.{name}", least[name], most),
        )
        label = (
            name
            if fields.get("checkpointing") == question.fields.get("checkpointing")
            else f"{name}, checkpointing on"
        )
        found.append((label, check_part(part, context)))
    return found
