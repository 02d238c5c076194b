"""COMPANIONS: the models that a task holds beside the trained one, by the Setup field that names them."""

from __future__ import annotations

from dataclasses import dataclass

from memplan.planner.tables.tasks import Head


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """A model that is held beside the trained one, of another config."""

    head: Head = "vocabulary"
    outputs: int = 0
    caches: bool = False
    """Its forward keeps keys and values of every layer, as a config says that nobody changed."""
    asks_gradients: bool = True
    """Nobody switched its parameters' gradients off, so that autocast keeps copies of them where it makes some."""
    same_vocabulary: bool = False


COMPANIONS: dict[str, Companion] = {
    "teacher": Companion(same_vocabulary=True),
    "reward_model": Companion(head="pooled", outputs=1, caches=True),
    "value_model": Companion(head="pooled", outputs=1, caches=True),
}
"""Setup field -> the model that it names."""
