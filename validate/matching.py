"""Which recorded runs a check speaks of: every key of a match must agree with the record's model, outcome or
Setup field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from memplan.planner.inputs.setup import FIELDS
from memplan.planner.tables.errors import unknown
from memplan.planner.tables.methods import METHODS

if TYPE_CHECKING:
    from memplan.profiler.record import Measurement

_OWN = ("model", "gpu", "outcome", "device")


def find_records(records: Iterable[Measurement], match: Mapping[str, Any]) -> list[Measurement]:
    """Records that agree with `match`; a CPU run is no evidence for a time unless `device = "cpu"` asks for
    it. Raises UsageError.
    """
    for key in match:
        if key not in (*_OWN, *FIELDS):
            raise unknown("key of a match", key, (*_OWN, *FIELDS))
    wanted = {"device": "cuda", **match}
    return [
        record
        for record in records
        if all(_value(record, key) == _plain(value) for key, value in wanted.items())
    ]


def _value(record: Measurement, key: str) -> Any:
    if key == "model":
        return record.model.get("name")
    if key == "gpu":
        return record.environment.get("gpu")
    if key == "outcome":
        return record.outcome
    return getattr(record.setup, key)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_ALIKE = (
    "micro_batch",
    "sequence_length",
    "weight_dtype",
    "autocast",
    "checkpointing",
    "attention",
    "loss",
    "gpus",
    "parallel",
)
_ADAPTERS_ALIKE = ("rank", "targets")


def comparable(one: Measurement, other: Measurement) -> bool:
    """Whether two runs differ in their method alone: one model, GPU and shape, and one rank where both train
    adapters.
    """
    both = {METHODS[record.setup.method].trains for record in (one, other)} == {"adapter"}
    alike = (*_ALIKE, *(_ADAPTERS_ALIKE if both else ()))
    same = all(getattr(one.setup, name) == getattr(other.setup, name) for name in alike)
    return (
        same
        and one.model.get("name") == other.model.get("name")
        and one.environment.get("gpu") == other.environment.get("gpu")
    )


def hint(match: Mapping[str, Any]) -> str:
    """The command that would record what is missing."""
    known = {
        "model": "",
        "method": "--method ",
        "recipe": "--recipe ",
        "micro_batch": "--batch ",
        "sequence_length": "--seq ",
    }
    words = [f"{flag}{match[key]}" for key, flag in known.items() if key in match]
    rest = [f"--set {key}={_text(value)}" for key, value in match.items() if key not in (*known, *_OWN)]
    return " ".join(["memplan profile", *([] if "model" in match else ["MODEL"]), *words, *rest, "--save"])


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
