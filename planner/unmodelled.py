"""What a setup says that a prediction does not follow: said aloud, never dropped in silence. A test proves that each gap is still one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from planner.methods import METHODS
from planner.setup import Setup


@dataclass(frozen=True, slots=True)
class Gap:
    """A choice that an engine does not follow, and which way its answer is off."""

    engine: Literal["formula", "trace"]
    name: str
    chosen: Callable[[Setup], bool]
    effect: str


GAPS: tuple[Gap, ...] = (
    Gap("formula", "checkpoint_offload", lambda s: s.checkpoint_offload and s.checkpointing != "none",
        "the formula keeps checkpoints on the card, which is more than the run holds"),
)  # fmt: skip
"""Where a gap is closed, its line goes."""


def gaps(engine: str, setup: Setup) -> Iterator[str]:
    """One sentence for each gap of an engine that this setup falls into."""
    for gap in GAPS:
        if gap.engine == engine and gap.chosen(setup):
            yield f"{gap.name} '{getattr(setup, gap.name)}' is not followed: {gap.effect}".replace("'True'", "on")


def unread(setup: Setup) -> Iterator[str]:
    """One sentence for each choice of the user's own that this method does not read, such as a rank in full fine-tuning."""
    method = METHODS[setup.method]
    known = {name for row in METHODS.values() for name in row.reads}
    for name, origin in setup.origins.items():
        if origin == "user" and name in known and name not in method.reads:
            yield f"{name} has no effect: method '{setup.method}' does not read it"
