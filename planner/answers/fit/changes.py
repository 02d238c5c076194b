"""Single changes that make a setup smaller, what each saves and what it costs; and a waterfall, since savings
do not add.

The changes that need no explanation are those of `suggest.py`; here are the others, the price of each, and
the order of a waterfall. Every change is evaluated through the formula. A price in time is arithmetic on
FLOPs or a library's own statement, and says which.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from memplan.planner.answers.fit.decide import Remedy
from memplan.planner.answers.fit.frontier import Room, need, peak_of
from memplan.planner.answers.fit.suggest import CHANGES, Change, changed
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.methods import METHODS


def _adapter(setup: Setup) -> bool:
    return METHODS[setup.method].trains == "adapter"


EXTRA: tuple[Change, ...] = (
    Change(
        "quantize",
        "a 4-bit base: --set quant_type=nf4",
        lambda s: METHODS[s.method].trains == "nothing" and s.quant_type == "none",
        lambda s: {"quant_type": "nf4"},
    ),
    Change(
        "paged",
        "paged 8-bit optimizer states: --optimizer paged_adamw_8bit",
        lambda s: s.optimizer in ("adamw_torch", "adamw_torch_fused"),
        lambda s: {"optimizer": "paged_adamw_8bit"},
    ),
    Change(
        "fused",
        "fused head and loss, no logits: --loss fused",
        lambda s: s.loss == "full",
        lambda s: {"loss": "fused"},
    ),
    Change(
        "factored",
        "factored optimizer states: --optimizer adafactor",
        lambda s: s.method in ("full", "freeze") and "adamw" in s.optimizer,
        lambda s: {"optimizer": "adafactor"},
    ),
    Change(
        "adapters",
        "adapters in bfloat16: --set adapter_dtype=bfloat16",
        lambda s: _adapter(s) and s.adapter_dtype == "float32",
        lambda s: {"adapter_dtype": "bfloat16"},
    ),
    Change(
        "weights",
        "weights in bfloat16: --dtype bfloat16",
        lambda s: s.weight_dtype == "float32",
        lambda s: {"weight_dtype": "bfloat16"},
    ),
    Change(
        "targets",
        "adapters on attention alone: --targets attention",
        lambda s: _adapter(s) and s.targets in (("all-linear",), ("linear-modules",)),
        lambda s: {"targets": ("attention",)},
    ),
    Change(
        "master",
        "no float32 copies of trained parameters: --set trainable_dtype=weight",
        lambda s: s.trainable_dtype == "float32",
        lambda s: {"trainable_dtype": "weight"},
    ),
)

COSTS: dict[str, str] = {
    "checkpointing": "recomputes each layer's forward: about a third more computation",
    "attention": "none",
    "half": "needs loss scaling; this GPU has no fast bfloat16",
    "optimizer": "optimizer states are quantized block-wise at each step",
    "paged": "optimizer states are quantized, and paged to the host under memory pressure",
    "factored": "no per-weight second moment: needs other hyperparameters",
    "quantization": "constants are dequantized twice: slightly slower",
    "upcast": "norms and head are computed in 16 bits",
    "outputs": "metrics see 16-bit logits",
    "loss": "the head is recomputed in tiles",
    "fused": "needs the Liger or cut cross-entropy kernel",
    "method": "a different method: see the recommendation",
    "quantize": "weights are rounded, and dequantized at every use",
    "rank": "fewer adapter parameters",
    "targets": "fewer adapter parameters",
    "adapters": "16-bit adapters and states",
    "weights": "16-bit weights",
    "master": "small 16-bit updates can round to zero",
    "batch": "more, smaller steps: slower for the same tokens",
    "sequence": "shorter examples",
}
"""What each kind of change costs, in words."""

ORDER = (
    "half",
    "weights",
    "master",
    "attention",
    "outputs",
    "checkpointing",
    "loss",
    "optimizer",
    "quantization",
    "upcast",
    "method",
    "quantize",
    "rank",
    "batch",
    "sequence",
)
"""A waterfall's order: what costs least first, what changes the training last."""

MILD = (
    "half",
    "attention",
    "outputs",
    "checkpointing",
    "loss",
    "optimizer",
    "quantization",
    "upcast",
)
"""Changes that cost time or the last bits of states, norms and metrics, and leave method, weights, adapters,
batch and sequence alone.
"""


@dataclass(frozen=True, slots=True)
class Effect:
    """One change evaluated: what it saves, and the device bytes after it (in a waterfall: after it and all
    before it).
    """

    kind: str
    text: str
    fields: dict[str, Any]
    saved: int
    after: int
    fits: bool
    cost: str

    def to_document(self) -> dict[str, Any]:
        """The change and its effect as the JSON of `fit` and `oom` have them."""
        fields = {
            key: list(value) if isinstance(value, tuple) else value for key, value in self.fields.items()
        }
        return {
            "kind": self.kind,
            "change": self.text,
            "setup": fields,
            "saved_bytes": self.saved,
            "device_bytes": self.after,
            "fits": self.fits,
            "cost": self.cost,
        }


def device_bytes(spec: ModelSpec, setup: Setup, room: Room) -> int:
    """The formula's device peak of a setup on a GPU."""
    return room.device_bytes(peak_of(spec, setup))


def single_changes(spec: ModelSpec, setup: Setup, room: Room) -> list[Effect]:
    """Every single change that lowers the peak, those that make it fit first, then by what they save."""
    before = device_bytes(spec, setup, room)
    effects = [effect for effect in _effects(spec, setup, room, before) if effect.saved > 0]
    return sorted(effects, key=lambda effect: (not effect.fits, -effect.saved))


def _effects(spec: ModelSpec, setup: Setup, room: Room, before: int) -> Iterator[Effect]:
    for change in (*CHANGES, *EXTRA):
        if not change.applies(setup):
            continue
        fields = dict(change.fields(setup))
        try:
            allocated = peak_of(spec, changed(setup, fields))
        except UsageError:  # contradicts what the person chose, or has no rule for this model
            continue
        after = room.device_bytes(allocated)
        yield Effect(
            change.kind,
            change.text.format(**fields),
            fields,
            before - after,
            after,
            room.holds(allocated),
            COSTS[change.kind],
        )


def waterfall(spec: ModelSpec, setup: Setup, room: Room, order: Iterable[str] = ORDER) -> list[Effect]:
    """Changes one on top of another in `order` until it fits, each with what it saves there; without those
    that it fits without, and those that save next to nothing.
    """
    steps = _in_order(spec, setup, room, order)
    kinds = list(dict.fromkeys(step.kind for step in steps))
    if steps and steps[-1].fits:
        for kind in kinds[-2::-1]:  # what costs most first
            fewer = [other for other in kinds if other != kind]
            again = _in_order(spec, setup, room, fewer)
            if again and again[-1].fits and len(again) < len(steps):
                steps, kinds = again, fewer
    return _merged(steps)


def _in_order(spec: ModelSpec, setup: Setup, room: Room, order: Iterable[str]) -> list[Effect]:
    """Changes of these kinds, in order, until it fits or they end."""
    steps: list[Effect] = []
    current = setup
    before = device_bytes(spec, current, room)
    for kind in order:
        while not room.holds(peak_of(spec, current)):
            able = (
                effect
                for effect in _effects(spec, current, room, before)
                if effect.kind == kind and _worth(effect)
            )
            best = max(able, key=lambda effect: effect.saved, default=None)
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


def _worth(effect: Effect) -> bool:
    """Whether a change saves half a per cent, or all that is missing."""
    return effect.saved * 200 >= effect.after or (effect.fits and effect.saved > 0)


def remedy(spec: ModelSpec, setup: Setup, room: Room) -> Remedy | None:
    """The mild changes that make a setup fit, None where they do not: what trains, and on what, stays as it
    is.
    """
    steps = waterfall(spec, setup, room, MILD)
    if not steps or not steps[-1].fits:
        return None
    fields = {key: value for step in steps for key, value in step.fields.items()}
    if not need(spec, changed(setup, fields), room.error).fits(room.gpu):
        return None
    words = tuple(step.text.partition(":")[0].partition(",")[0] for step in steps)
    return Remedy(
        words, {key: value for step in steps for key, value in step.fields.items()}, steps[-1].after
    )


SEVERAL = {"rank": "a smaller rank", "batch": "a smaller micro-batch", "sequence": "shorter sequences"}
"""What several halvings in a row are called."""


def _merged(steps: list[Effect]) -> list[Effect]:
    """Halvings of one kind in a row as one step."""
    merged: list[Effect] = []
    for step in steps:
        if merged and merged[-1].kind == step.kind:
            text = f"{SEVERAL[step.kind]}: {step.text.partition(': ')[2]}"
            merged[-1] = replace(
                step,
                text=text,
                fields={**merged[-1].fields, **step.fields},
                saved=merged[-1].saved + step.saved,
            )
        else:
            merged.append(step)
    return merged
