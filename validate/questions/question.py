"""A question as it was read: the model, the setup, what is asked for, and the words that nothing used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memplan.planner.inputs.batches import Loader
from memplan.validate.questions.claimed import ClaimedValue
from memplan.validate.questions.intents import FITS
from memplan.validate.questions.leftover import Leftover
from memplan.validate.reading import Assumption

LARGEST = ("sequence_length", "micro_batch")


def doing(fields: Mapping[str, Any]) -> Mapping[str, str]:
    """What is done to a model, in both languages: its method, and the task where it is another than sft."""
    method, task = fields["method"], fields.get("task", "sft")
    if task == "sft":
        return {"en": method, "zh": method}
    return {"en": f"{task} with {method}", "zh": f"{method}（{task}）"}


@dataclass(frozen=True)
class Side:
    """The setup that another is compared with."""

    model: str
    fields: Mapping[str, Any]
    gpu: str | None


@dataclass(frozen=True)
class Question:
    """What was read: a model, Setup fields, perhaps a GPU, what is asked for, and the language to answer in.

    `intent`: fits, need, claim, saving, ... (`questions/intents.py`). `open_method`: no method was named, so
    the answer may choose one. `negated`: the sentence says that it does not fit.
    """

    sentence: str
    lang: str
    model: str
    fields: Mapping[str, Any]
    gpu: str | None
    assumptions: tuple[Assumption, ...]
    intent: str = FITS
    open_method: bool = False
    negated: bool = False
    left: Leftover = field(default_factory=Leftover)
    claimed: tuple[ClaimedValue, ...] = ()
    against: Side | None = None
    gpus: tuple[str, ...] = ()  # a class of GPUs: consumer
    tokens: int | None = None  # of the run
    price: float | None = None  # of a GPU for an hour
    loader: Loader | None = None  # of a dataset whose lengths are known: the fields are its longest batch's

    @property
    def wanted(self) -> str:
        """What the answer with a GPU looks for: empty for a verdict, a field's largest value, or `cards`."""
        return self.intent if self.intent in (*LARGEST, "cards") else ""

    @property
    def says_yes_or_no(self) -> bool:
        """Whether yes or no answers it: it was asked whether something fits, and every word was used."""
        return self.intent == FITS and not self.left.changes
