"""The engines by name, each asked for one model and setup; what they need is imported when they are asked."""

from __future__ import annotations

from memplan.planner.inputs.models import Model
from memplan.planner.inputs.picture_sizes import has_tower
from memplan.planner.inputs.setup import Setup
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError


def _formula(model: Model, setup: Setup) -> Prediction:
    from memplan.planner.formula.engine import plan as closed_form

    return closed_form(model.spec(), setup)


def _trace(model: Model, setup: Setup) -> Prediction:
    try:
        from memplan.planner.trace.engine import trace as step
    except ImportError as error:
        raise UsageError(f"--engine trace needs {error.name}: pip install 'memplan[trace]'") from None
    return step(model.config, setup, model.name)


def compiled(model: Model, setup: Setup) -> Prediction:
    """The trace of a family that the formula lacks, kept for the next time; a lower bound where no trace runs
    the setup as it is.
    """
    from memplan.planner.run.extras import require

    require()  # before anything imports the libraries: it silences what they say of themselves
    from memplan.planner.answers.bound import bound, nearest
    from memplan.planner.compiled.engine import Compiled

    runs = nearest(model.config, setup)
    found = Compiled(model.config, runs or setup).at((setup.micro_batch, setup.sequence_length), model.name)
    if runs is not None:
        found = bound(found, model.config, setup)
    what = _lacking(model, setup, found.model.architecture) or found.model.architecture
    why = f"traced: the formula has no rule for {what}, so the transformers class itself ran on meta tensors"
    return found.with_(assumptions=(why, *found.assumptions))


def _lacking(model: Model, setup: Setup, architecture: str) -> str:
    """What the formula lacks where it has the model's family; "" where it has not."""
    from memplan.planner.formula.lacking import lacking

    if has_tower(model.config):
        return f"the parts beside the language model of {architecture}"
    try:
        return lacking(model.spec(), setup)
    except UsageError:
        return ""


ENGINES = {"formula": _formula, "trace": _trace}
