"""The parts of a vision-language model beside its language model: which modules a setup leaves untrained."""

from __future__ import annotations

import re
from typing import Any

from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.pictures import PICTURES


def freeze(model: Any, setup: Setup) -> None:
    """Leave untrained what the setup freezes. UsageError for a model whose parts have no names here."""
    for name, parameter in model.named_parameters():
        if _frozen(model, setup, name):
            parameter.requires_grad_(False)


def frozen_modules(model: Any, setup: Setup) -> str | None:
    """The pattern of modules that get no adapter (peft 0.21 tuners/tuners_utils.py matches all of a name);
    None where every one may.
    """
    names = [name for name, _ in model.named_modules() if name and _frozen(model, setup, name)]
    return "|".join(map(re.escape, names)) or None


def _frozen(model: Any, setup: Setup, name: str) -> bool:
    if setup.vision_tower == setup.projector == "trained":
        return False
    rule = PICTURES.get(model.config.model_type)
    if rule is None:
        raise UsageError(
            f"vision_tower '{setup.vision_tower}', projector '{setup.projector}': memplan does not know "
            f"these parts of a '{model.config.model_type}' model: leave them out"
        )
    if any(_within(name, part) for part in rule.projector):
        return setup.projector == "frozen"
    return setup.vision_tower == "frozen" and any(_within(name, part) for part in rule.tower)


def _within(name: str, part: str) -> bool:
    """Whether a dotted name is a part's, or lies in it."""
    return f".{part}." in f".{name}."
