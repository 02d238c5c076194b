"""Which method to choose: the decision flow of teaching texts (hardware, then task, then deployment), on
numbers instead of adjectives.

The flow: full fine-tuning where the hardware allows it and quality on one task comes first; LoRA as the
all-round choice, first for many tasks and for serving, since its adapters are small and merge without a
trace; QLoRA where memory is what lacks. Quality, forgetting and latency are those texts' statements and are
marked as not computed; everything in bytes is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from memplan.planner.tables.units import gib

Prefer = Literal["quality", "memory", "speed"]
NOT_COMPUTED = "(general experience, not computed)"


@dataclass(frozen=True, slots=True)
class Remedy:
    """Mild changes that make a method fit: their names, the Setup fields that they set, the device peak with
    them.
    """

    changes: tuple[str, ...]
    fields: Mapping[str, Any]
    device_bytes: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the decision needs to know of one method: whether it fits, its device peak, and what training
    leaves behind for one task.

    `remedy`: the mild changes with which it fits where it does not as it is, None where they are not enough.
    """

    method: str
    fits: bool
    device_bytes: int
    checkpoint_bytes: int
    remedy: Remedy | None = None

    @property
    def possible(self) -> bool:
        """Whether the method fits as it is or with a remedy."""
        return self.fits or self.remedy is not None


@dataclass(frozen=True, slots=True)
class Decision:
    """The method chosen (None where none fits) and why, reason by reason; `fields`: the Setup fields without
    which it would not fit.
    """

    method: str | None
    reasons: tuple[str, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)

    def to_document(self) -> dict[str, Any]:
        """The decision as the JSON of `fit` has it."""
        return {"method": self.method, "setup": dict(self.fields), "reasons": list(self.reasons)}


CONSIDERED = ("full", "lora", "qlora")
"""The methods that the flow chooses from."""


def order(prefer: Prefer, tasks: int, serve: bool) -> tuple[str, ...]:
    """Methods in the order in which the flow tries them, under stated preferences."""
    if prefer == "memory":
        return ("qlora", "lora", "full")
    if prefer == "speed" or serve or tasks > 1:
        return ("lora", "qlora", "full")
    return ("full", "lora", "qlora")


def decide(
    candidates: Mapping[str, Candidate], *, prefer: Prefer = "quality", tasks: int = 1, serve: bool = False
) -> Decision:
    """The first method of the flow's order that fits, with its reasons. `candidates` by method name; those
    missing are passed over.
    """
    reasons: list[str] = []
    wanted = [name for name in order(prefer, tasks, serve) if name in candidates]
    if serve or tasks > 1:
        wanted = [name for name in wanted if name != "full"] + [name for name in wanted if name == "full"]
    chosen = next((name for name in wanted if candidates[name].possible), None)
    for name in wanted:
        candidate = candidates[name]
        if name == chosen:
            break
        reasons.append(f"{name} does not fit: it needs {gib(candidate.device_bytes)}")
    if chosen is None:
        return Decision(
            None,
            (
                *reasons,
                "no method fits, even with mild changes: use a larger GPU, several GPUs, or a smaller model",
            ),
        )
    reasons += _because(chosen, candidates, prefer, tasks, serve)
    remedy = candidates[chosen].remedy
    return Decision(chosen, tuple(reasons), remedy.fields if remedy else {})


def _because(
    chosen: str, candidates: Mapping[str, Candidate], prefer: Prefer, tasks: int, serve: bool
) -> list[str]:
    this = candidates[chosen]
    reasons = [f"{chosen} fits: it needs {gib(this.device_bytes)}"]
    if not this.fits and this.remedy is not None:
        *most, last = this.remedy.changes
        changes = f"{', '.join(most)} and {last}" if most else last
        reasons = [
            f"{chosen} fits with {changes}: it needs {gib(this.remedy.device_bytes)} instead of "
            f"{gib(this.device_bytes)}"
        ]
    if chosen == "full":
        reasons.append(f"every weight can change, which favors quality on one task {NOT_COMPUTED}")
        reasons.append(f"it can also forget the most of what the base model knew {NOT_COMPUTED}")
    if chosen == "lora":
        reasons.append(
            f"adapters merge into the weights: no added latency when serving {NOT_COMPUTED}"
            if serve
            else f"frozen weights forget less than full fine-tuning {NOT_COMPUTED}"
        )
        if prefer == "speed":
            reasons.append("no weight is dequantized: fewer operations per step than QLoRA")
    if chosen == "qlora":
        reasons.append(
            "the 4-bit base leaves the most memory free"
            if prefer == "memory"
            else "the 4-bit base is what makes it fit"
        )
        if serve:
            reasons.append(
                "serving 4-bit weights dequantizes them at every step; merging needs the original "
                f"16-bit weights {NOT_COMPUTED}"
            )
    if tasks > 1 and "full" in candidates:
        adapters, full = tasks * this.checkpoint_bytes, tasks * candidates["full"].checkpoint_bytes
        if chosen != "full":
            reasons.append(
                f"{tasks} tasks need {gib(adapters)} for adapters plus one base model; full copies would "
                f"need {gib(full)}"
            )
        else:
            reasons.append(f"{tasks} tasks need {gib(full)} for full copies")
    return reasons
