"""Which trained tensors an optimizer of low rank projects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from memplan.planner.formula.resident.parameter_spec import ParameterSpec
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.low_rank import no_layer, projector, targets
from memplan.planner.tables.optimizers import OPTIMIZERS

LINEAR = ("linear", "head", "tower_linear")
"""Roles of the weights of nn.Linear."""


def projected(stored: ParameterSpec, shape: tuple[int, ...], setup: Setup) -> ParameterSpec:
    """The tensor of that shape with its projector, where the optimizer projects its gradient. UsageError
    where it is to do so in some layers alone.
    """
    row = OPTIMIZERS[setup.optimizer]
    if not (row.low_rank and stored.trained and stored.role in LINEAR):
        return stored
    module = stored.name.rpartition(".")[0]
    names = [module.replace("*", str(layer), 1) for layer in stored.layers] or [module]
    found = {targets(setup.optim_targets, name, stored.role == "head") for name in names}
    if len(found) > 1:
        raise UsageError(
            f"optim_targets {','.join(setup.optim_targets)} names {module} of some layers alone: the formula "
            "has no rule for that; use --engine trace"
        )
    if not found.pop():
        return stored
    rows, columns = shape
    bounded = all(rule != "random" for _, rule in row.projects)
    kind = setup.optim_projection
    return replace(stored, projector=projector(setup.optim_rank, kind, (rows, columns), bounded))


def any_projected(stored: Sequence[ParameterSpec], setup: Setup) -> None:
    """UsageError where an optimizer of low rank trains tensors and none of them is among its targets
    (transformers 5.24 trainer_optimizer.py: no target modules found).
    """
    trains = OPTIMIZERS[setup.optimizer].low_rank and any(each.trained for each in stored)
    if trains and all(each.projector is None for each in stored):
        raise UsageError(no_layer(setup.optim_targets))
