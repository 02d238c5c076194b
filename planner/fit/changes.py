"""Single changes that make a setup smaller, what each saves and what it costs; and a waterfall, since savings do not add.

The changes that need no explanation are those of `suggest.py`; here are the others, the price of each, and the order of a waterfall.
Every change is evaluated through the formula. A price in time is arithmetic on FLOPs or a library's own statement, and says which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from planner.errors import UsageError
from planner.fit.frontier import Room, peak_of
from planner.fit.suggest import CHANGES, Change, changed
from planner.methods import METHODS
from planner.setup import Setup
from planner.spec import ModelSpec


def _adapter(setup: Setup) -> bool:
    return METHODS[setup.method].trains == "adapter"


EXTRA: tuple[Change, ...] = (
    Change("paged", "8-bit states in pageable memory: --optimizer paged_adamw_8bit", lambda s: s.optimizer.startswith("adamw_torch"),
           lambda s: {"optimizer": "paged_adamw_8bit"}),
    Change("fused", "the loss fused with the head, no logits: --loss fused", lambda s: s.loss == "full", lambda s: {"loss": "fused"}),
    Change("factored", "factored states: --optimizer adafactor", lambda s: s.method in ("full", "freeze") and "adamw" in s.optimizer,
           lambda s: {"optimizer": "adafactor"}),
    Change("adapters", "adapters in bfloat16: --set adapter_dtype=bfloat16", lambda s: _adapter(s) and s.adapter_dtype == "float32",
           lambda s: {"adapter_dtype": "bfloat16"}),
    Change("weights", "weights in bfloat16: --dtype bfloat16", lambda s: s.weight_dtype == "float32",
           lambda s: {"weight_dtype": "bfloat16"}),
    Change("targets", "adapters on attention alone: --targets attention", lambda s: _adapter(s) and s.targets == ("all-linear",),
           lambda s: {"targets": ("attention",)}),
    Change("master", "no float32 copies of what trains: --set trainable_dtype=weight", lambda s: s.trainable_dtype == "float32",
           lambda s: {"trainable_dtype": "weight"}),
)  # fmt: skip

COSTS: dict[str, str] = {
    "checkpointing": "each layer's forward again: about a third more computation",
    "attention": "none",
    "optimizer": "states are quantised block by block each step",
    "paged": "states are quantised, and move to the host under pressure",
    "factored": "no second moment for each weight: other hyper-parameters",
    "quantisation": "constants are dequantised twice: little time",
    "upcast": "norms and head compute in 16 bits",
    "outputs": "metrics see 16-bit logits",
    "loss": "the head is computed again in tiles",
    "fused": "needs the kernel of Liger or cut cross-entropy",
    "method": "a different method: see which to choose",
    "rank": "fewer adapter parameters",
    "targets": "fewer adapter parameters",
    "adapters": "16-bit adapters and states",
    "weights": "16-bit weights",
    "master": "16-bit updates can round to nothing",
    "batch": "more, smaller steps: the same tokens in more time",
    "sequence": "shorter examples",
}
"""What each kind of change costs, in words."""

ORDER = (
    "weights",
    "master",
    "attention",
    "outputs",
    "checkpointing",
    "loss",
    "optimizer",
    "quantisation",
    "upcast",
    "method",
    "rank",
    "batch",
    "sequence",
)
"""A waterfall's order: what costs least first, what changes the training last."""


@dataclass(frozen=True, slots=True)
class Effect:
    """One change evaluated: what it saves, and the device bytes after it (in a waterfall: after it and all before it)."""

    kind: str
    text: str
    fields: dict[str, Any]
    saved: int
    after: int
    fits: bool
    cost: str

    def to_document(self) -> dict[str, Any]:
        fields = {key: list(value) if isinstance(value, tuple) else value for key, value in self.fields.items()}
        return {"kind": self.kind, "change": self.text, "setup": fields, "saved_bytes": self.saved, "device_bytes": self.after,
                "fits": self.fits, "cost": self.cost}  # fmt: skip


def device_bytes(spec: ModelSpec, setup: Setup, room: Room) -> int:
    """The formula's device peak of a setup on a card."""
    return room.device_bytes(peak_of(spec, setup))


def single_changes(spec: ModelSpec, setup: Setup, room: Room) -> list[Effect]:
    """Every single change that lowers the peak, those that make it fit first, then by what they save."""
    before = device_bytes(spec, setup, room)
    effects = [effect for effect in _effects(spec, setup, room, before) if effect.saved > 0]
    return sorted(effects, key=lambda effect: (not effect.fits, -effect.saved))


def _effects(spec: ModelSpec, setup: Setup, room: Room, before: int) -> Iterator[Effect]:
    if METHODS[setup.method].trains == "nothing":
        return
    for change in (*CHANGES, *EXTRA):
        if not change.applies(setup):
            continue
        fields = dict(change.fields(setup))
        try:
            allocated = peak_of(spec, changed(setup, fields))
        except UsageError:  # contradicts what the person chose, or has no rule for this model
            continue
        after = room.device_bytes(allocated)
        yield Effect(change.kind, change.text.format(**fields), fields, before - after, after, room.holds(allocated), COSTS[change.kind])


def waterfall(spec: ModelSpec, setup: Setup, room: Room) -> list[Effect]:
    """Changes one on top of another in ORDER until it fits, each with what it saves there; those that save nothing by then are left out."""
    steps: list[Effect] = []
    current = setup
    before = device_bytes(spec, current, room)
    for kind in ORDER:
        while not room.holds(peak_of(spec, current)):
            best = max(
                (e for e in _effects(spec, current, room, before) if e.kind == kind and e.saved > 0), key=lambda e: e.saved, default=None
            )
            if best is None:
                break
            steps.append(best)
            current = changed(current, {**{k: v for step in steps for k, v in step.fields.items()}})
            before = best.after
            if kind not in ("rank", "batch", "sequence"):
                break
        if room.holds(peak_of(spec, current)):
            break
    return steps
