"""The parts of a vision-language model beside its language model: which modules a setup leaves untrained."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from memplan.planner.inputs.picture_sizes import has_tower
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.pictures import PICTURES, PictureRule


def freeze(model: Any, setup: Setup) -> None:
    """Leave untrained what the setup freezes. UsageError for a model whose parts have no names here."""
    is_frozen = _frozen(model, setup)
    for name, parameter in model.named_parameters():
        if is_frozen(name):
            parameter.requires_grad_(False)


_HELD = ".parametrizations."


def frozen_modules(model: Any, setup: Setup) -> str | None:
    """The pattern of modules that get no adapter (peft 0.21 tuners/tuners_utils.py matches all of a name);
    None where every one may. What holds experts' parameters in 4 bits is named as they are, and no layer:
    axolotl 0.19 monkeypatch/moe_quant.py skips it, PEFT alone refuses the model.
    """
    is_frozen = _frozen(model, setup)
    names = [name for name, _ in model.named_modules() if name and (is_frozen(name) or _HELD in name)]
    return "|".join(map(re.escape, names)) or None


def _frozen(model: Any, setup: Setup) -> Callable[[str], bool]:
    """Whether a dotted name lies in a part that the setup freezes."""
    if setup.vision_tower == setup.projector == "trained" or not has_tower(model.config.to_dict()):
        return lambda name: False
    kind = model.config.model_type
    if kind not in PICTURES:
        raise UsageError(
            f"vision_tower '{setup.vision_tower}', projector '{setup.projector}': memplan does not know "
            f"these parts of a '{kind}' model: use --set vision_tower=trained --set projector=trained"
        )
    rule: PictureRule = PICTURES[kind]

    def is_frozen(name: str) -> bool:
        if any(_within(name, part) for part in rule.projector):
            return setup.projector == "frozen"
        return setup.vision_tower == "frozen" and any(_within(name, part) for part in rule.tower)

    return is_frozen


def _within(name: str, part: str) -> bool:
    """Whether a dotted name is a part's, or lies in it."""
    return f".{part}." in f".{name}."
