"""What the formula has no rule for, whatever the sizes: one definition for its refusal and for the commands
that then answer with the trace.
"""

from __future__ import annotations

from memplan.planner.inputs.companions import teacher_of
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.tasks import TASKS


def lacking(spec: ModelSpec, setup: Setup) -> str:
    """What of a model's setup has no rule, "" where all has one."""
    reasons = {
        "the teacher's family": _unknown_teacher(setup),
        "a PEFT adapter_config.json, which can be of any type": setup.adapter is not None,
        f"task '{setup.task}'": not TASKS[setup.task].formula,
        f"samples scored by trl {setup.trl}": TASKS[setup.task].generates
        and TASKS[setup.task].folds
        and setup.loss == "full",
        "a reward model beside the trained one": setup.reward_model is not None,
        "the cached loss of one text at a time": setup.mini_batch == 1,
        "top_p and top_k": setup.top_p is not None or setup.top_k is not None,
        "an evaluation that samples": setup.eval_batch is not None and TASKS[setup.task].generates,
        f"method '{setup.method}'": METHODS[setup.method].traced,
        "adapters on parameters (target_parameters)": bool(setup.target_parameters),
        "parameters trained by name (trained_parameters)": bool(setup.trained_parameters),
        "adapters on some layers alone (layers_to_transform)": bool(setup.layers_to_transform),
        "a loss of the router's logits (output_router_logits)": spec.balances and not _balanced(spec, setup),
    }
    lack = next((what for what, holds in reasons.items() if holds), "")
    if lack or not setup.merge:
        return lack
    from memplan.planner.formula.merging import lacking as merging

    return merging(spec, setup)


def _balanced(spec: ModelSpec, setup: Setup) -> bool:
    """Whether a loss of how experts are chosen has a rule (formula/forward/added_losses.py)."""
    trains = METHODS[setup.method].trains != "nothing"
    return trains and spec.model_type == "mixtral" and (setup.task, setup.loss) == ("sft", "full")


def _unknown_teacher(setup: Setup) -> bool:
    try:
        teacher_of(setup)
    except UsageError:
        return True
    return False


def refuse(spec: ModelSpec, setup: Setup) -> None:
    """UsageError for what has no rule, naming the engine that answers."""
    if lack := lacking(spec, setup):
        raise UsageError(
            f"the formula has no rule for {lack}: use --engine trace, which runs the libraries themselves"
        )
