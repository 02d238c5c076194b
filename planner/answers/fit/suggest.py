"""Three changes that would help: single changes of a small table, each evaluated through the formula.
`search.py` has the full search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from memplan.planner.answers.fit.frontier import peak_of
from memplan.planner.formula.engine import whole_segments
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.inputs.tasks import shortest
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu, find_gpu
from memplan.planner.tables.methods import METHODS

Fields = Mapping[str, Any]
CHOSEN = ("user", "import", "checkpoint")
"""Origins of what a person chose: these stay when a change makes the other fields follow new defaults."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change: words with the option that makes it, when it applies, the fields that it sets. At most one
    of a `kind` is shown.
    """

    kind: str
    text: str
    applies: Callable[[Setup], bool]
    fields: Callable[[Setup], Fields]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A change evaluated: what it saves of the peak and what the peak would be, in bytes of device memory."""

    text: str
    fields: Fields
    saved_bytes: int
    device_bytes: int

    @property
    def option(self) -> str:
        """The option that makes the change, as typed."""
        return self.text[self.text.index("--") :] if "--" in self.text else self.text

    def to_document(self) -> dict[str, Any]:
        """The suggestion as JSON has it: the fields to set and the bytes saved."""
        return {
            "change": self.text,
            "setup": dict(self.fields),
            "saved_bytes": self.saved_bytes,
            "device_bytes": self.device_bytes,
        }


def _trains(setup: Setup) -> bool:
    return METHODS[setup.method].trains != "nothing"


def _adapter(setup: Setup) -> bool:
    return METHODS[setup.method].trains == "adapter"


def lacks_bfloat16(setup: Setup) -> bool:
    """Whether the GPU that the setup names is older than Ampere (compute capability 8.0), the first with
    bfloat16 products.
    """
    capability = find_gpu(setup.gpu).capability if setup.gpu else None
    return capability is not None and capability < (8, 0)


CHANGES: tuple[Change, ...] = (
    Change(
        "checkpointing",
        "gradient checkpointing: --checkpointing",
        lambda s: _trains(s) and s.checkpointing == "none",
        lambda s: {"checkpointing": "non_reentrant"},
    ),
    Change(
        "attention",
        "scaled-dot-product attention: --attention sdpa",
        lambda s: s.attention == "eager",
        lambda s: {"attention": "sdpa"},
    ),
    Change(
        "half",
        "float16, which this GPU supports natively: --dtype float16 --autocast float16",
        lambda s: _trains(s) and "bfloat16" in (s.weight_dtype, s.autocast) and lacks_bfloat16(s),
        lambda s: {"weight_dtype": "float16", "autocast": "none" if s.autocast == "none" else "float16"},
    ),
    Change(
        "optimizer",
        "8-bit optimizer states: --optimizer adamw_bnb_8bit",
        lambda s: (
            _trains(s)
            and s.optimizer in ("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit")
            and s.parallel != "fsdp"  # no DTensor in bnb
        ),
        lambda s: {"optimizer": "adamw_bnb_8bit"},
    ),
    Change(
        "quantization",
        "double quantization: --set double_quant=true",
        lambda s: s.quant_type in ("nf4", "fp4") and not s.double_quant,
        lambda s: {"double_quant": True},
    ),
    Change(
        "upcast",
        "no fp32 upcast of unquantized parameters: --set kbit_prepare=false",
        lambda s: s.quant_type != "none" and s.kbit_prepare,
        lambda s: {"kbit_prepare": False},
    ),
    Change(
        "outputs",
        "no fp32 copy of the returned logits: --set outputs_fp32=false",
        lambda s: _trains(s) and s.outputs_fp32,
        lambda s: {"outputs_fp32": False},
    ),
    Change(
        "loss",
        "chunked loss, never materializes the full logits: --loss chunked",
        lambda s: _trains(s) and s.loss == "full",
        lambda s: {"loss": "chunked"},
    ),
    Change(
        "method",
        "a 4-bit base: --method qlora",
        lambda s: s.method == "lora" and s.quant_type == "none",
        lambda s: {"method": "qlora"},
    ),
    Change(
        "method",
        "adapters instead of full fine-tuning: --method lora",
        lambda s: s.method in ("full", "freeze"),
        lambda s: {"method": "lora"},
    ),
    Change(
        "method",
        "adapters on a 4-bit base: --method qlora",
        lambda s: s.method in ("full", "freeze"),
        lambda s: {"method": "qlora"},
    ),
    Change(
        "rank",
        "half the rank: --rank {rank}",
        lambda s: _adapter(s) and "rank" in METHODS[s.method].reads and s.rank > 8,
        lambda s: {"rank": s.rank // 2},
    ),
    Change(
        "batch",
        "half the micro-batch: --batch {micro_batch} --set gradient_accumulation={gradient_accumulation}",
        lambda s: s.micro_batch > 1,
        lambda s: {"micro_batch": s.micro_batch // 2, "gradient_accumulation": s.gradient_accumulation * 2},
    ),
    Change(
        "sequence",
        "half the sequence length: --seq {sequence_length}",
        lambda s: s.sequence_length > 256 and s.sequence_length // 2 >= shortest(s),
        lambda s: {"sequence_length": s.sequence_length // 2},
    ),
)


def changed(setup: Setup, fields: Fields) -> Setup:
    """`setup` with `fields`, where what nobody chose follows the new method's and recipe's defaults. The GPU
    and the device stay, whoever chose them: no default of a method is one. Raises UsageError.
    """
    chosen = {name: getattr(setup, name) for name, origin in setup.origins.items() if origin in CHOSEN}
    follows = {"optimizer_mode"} if "optimizer" in fields else set()
    keep = {name: value for name, value in chosen.items() if name not in follows}
    given = {
        "sequence_length": setup.sequence_length,
        "recipe": setup.recipe,
        "method": setup.method,
        "gpu": setup.gpu,
        "device": setup.device,
        **keep,
        **fields,
    }
    return resolve(given, trusted=True)


OF_THE_BASE = (
    "quant_type",
    "double_quant",
    "quant_block",
    "quant_storage",
    "compute_dtype",
    "kbit_prepare",
)
"""Setup fields that say how a base is quantized."""


def under(setup: Setup, method: str) -> Setup:
    """`setup` under another method, on that method's own base: how a training file quantizes is said of the
    method that it trains with. What the command line says holds for all. Raises UsageError.
    """
    if method == setup.method:
        return setup
    own = {
        name: origin
        for name, origin in setup.origins.items()
        if not (origin == "import" and name in OF_THE_BASE)
    }
    return changed(setup.with_(origins=own), {"method": method})


def suggest(
    spec: ModelSpec, setup: Setup, prediction: Prediction, gpu: Gpu | None = None, most: int = 3
) -> tuple[Suggestion, ...]:
    """At most `most` single changes that lower the peak by 1 % or more, those that make it fit `gpu` first,
    then the largest.

    One of each kind; what each saves is what the formula allocates less, also beside a traced prediction:
    what lies between tensors is not replayed for each. Savings do not add up: the peak is a maximum.
    """
    before = peak_of(spec, setup)
    device = prediction.peak.device_bytes
    found = [
        (kind, suggestion)
        for kind, suggestion in _evaluated(spec, setup, before, device)
        if suggestion.saved_bytes * 100 >= device
    ]
    found.sort(
        key=lambda pair: (gpu is not None and pair[1].device_bytes > gpu.usable_bytes, -pair[1].saved_bytes)
    )
    shown: dict[str, Suggestion] = {}
    for kind, suggestion in found:
        shown.setdefault(kind, suggestion)
    return tuple(shown.values())[:most]


def _evaluated(spec: ModelSpec, setup: Setup, before: int, device: int) -> Iterator[tuple[str, Suggestion]]:
    for change in CHANGES:
        if not change.applies(setup):
            continue
        fields = change.fields(setup)
        try:
            after = peak_of(spec, changed(setup, fields))
        except UsageError:  # a change that contradicts what the person chose is no suggestion
            continue
        saved = whole_segments(before) - whole_segments(after)
        yield change.kind, Suggestion(change.text.format(**fields), fields, saved, device - saved)
