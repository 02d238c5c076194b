"""The picture of an example where a run trains on pictures and nobody says their size: an assumption, as the
length of a row is, said with the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.planner.inputs.picture_sizes import Sizes, has_tower, rule_of
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.pictures import RESIZED, USUAL, USUAL_WORD, WITH_PICTURES

ASSUMED, OPEN = "assumed", "open"
"""The origins of `images` that nobody said: assumed, and left open where memplan has no rule for them."""


def resolved(config: Mapping[str, Any], setup: Any) -> Any:
    """The setup with the picture that `usual` stands for; with none said, where the model has no rule for
    pictures, or the task or packed rows take none.
    """
    if setup.images != (USUAL_WORD,):
        return setup
    taken = setup.task in WITH_PICTURES and setup.device != "cpu" and setup.packed_documents == 1
    size = usual(config, setup.recipe) if taken else None
    origin = ASSUMED if size else OPEN
    return setup.with_(images=(size,) if size else (), origins={**setup.origins, "images": origin})


def nameable(config: Mapping[str, Any], setup: Any) -> Any:
    """The setup without a file's frozen parts where memplan does not know the names of these parts: rows of
    text leave them without gradients anyway, and pictures of such a model are a lower bound.
    """
    if setup.origins.get("vision_tower") != "import" or not has_tower(config):
        return setup
    try:
        rule_of(config)
    except UsageError:
        return setup.with_(vision_tower="trained", projector="trained")
    return setup


def usual(config: Mapping[str, Any], recipe: str) -> str | None:
    """The size of a recipe's picture as `--images` has it: what the recipe makes of every picture where it
    makes them alike, else USUAL. None for a model without a rule.
    """
    try:
        rule = rule_of(config)
        side = Sizes(config, rule).image_size if recipe in RESIZED else None
    except UsageError:
        return None
    return f"1@{side[0]}x{side[1]}" if side else USUAL


def is_assumed(setup: Any) -> bool:
    """Whether a setup's pictures are those of `usual`."""
    return bool(setup.images) and setup.origins.get("images") == ASSUMED


def in_words(setup: Any) -> str:
    """How the assumption begins, "" where sizes were said."""
    if not is_assumed(setup):
        return ""
    why = f" ({RESIZED[setup.recipe]})" if setup.recipe in RESIZED and setup.images != (USUAL,) else ""
    return (
        f"nobody says which pictures: one of {setup.images[0].partition('@')[2]} to an example{why}; "
        "--images N@WxH says others, --images none that all examples are text; "
    )


def is_open(setup: Any) -> bool:
    """Whether a run trains on pictures that nothing counts."""
    return bool(setup.images == (USUAL_WORD,) or setup.origins.get("images") == OPEN)


def wants_tower(config: Mapping[str, Any], setup: Any) -> bool:
    """Whether a run on pictures names a model whose config.json here is of its language part."""
    return bool(setup.images) and setup.images != ("none",) and not has_tower(config)
