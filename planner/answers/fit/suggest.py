"""Three changes that would help: single changes of a small table, each evaluated through the formula.
`search.py` has the full search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

from memplan.planner.answers.fit.frontier import peak_of
from memplan.planner.formula.engine import whole_segments
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.inputs.tasks import shortest
from memplan.planner.prediction import Prediction, Row
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import find_gpu
from memplan.planner.tables.methods import METHODS

Fields = Mapping[str, Any]
CHOSEN = ("user", "import", "checkpoint")
"""Origins of what a person chose: these stay when a change makes the other fields follow new defaults."""


def _any(row: Row, vocabulary: int) -> bool:
    return True


def _states(row: Row, vocabulary: int) -> bool:
    return row.component in ("optimizer_states", "temporaries")


def _logits(row: Row, vocabulary: int) -> bool:
    return row.component in ("activations", "temporaries") and vocabulary in row.shape


def _wide_logits(row: Row, vocabulary: int) -> bool:
    return row.dtype == "float32" and _logits(row, vocabulary)


class Change(NamedTuple):
    """One change: words with the option that makes it, when it applies, the fields that it sets. At most one
    of a `kind` is shown. `touches`: the rows of the peak (and the model's vocabulary) that it can make
    smaller, all others staying there: it saves no more than they hold.
    """

    kind: str
    text: str
    applies: Callable[[Setup], bool]
    fields: Callable[[Setup], Fields]
    touches: Callable[[Row, int], bool] = _any


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
        _states,
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
        _wide_logits,
    ),
    Change(
        "loss",
        "chunked loss, never materializes the full logits: --loss chunked",
        lambda s: _trains(s) and s.loss == "full",
        lambda s: {"loss": "chunked"},
        _logits,
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


def suggest(spec: ModelSpec, setup: Setup, prediction: Prediction, most: int = 3) -> tuple[Suggestion, ...]:
    """At most `most` single changes that lower the peak by 1 % or more, the largest first, and so those that
    make it fit a GPU.

    One of each kind; what each saves is what the formula allocates less, also beside a traced prediction:
    what lies between tensors is not replayed for each. Savings do not add up: the peak is a maximum. A change
    that cannot be among them is not evaluated.
    """
    before, device = peak_of(spec, setup), prediction.peak.device_bytes
    bounds = [_bound(change, spec, prediction) if change.applies(setup) else 0 for change in CHANGES]
    shown: dict[str, tuple[int, int, Suggestion]] = {}
    for number in sorted(range(len(CHANGES)), key=lambda number: -bounds[number]):
        best = sorted((saved for saved, _, _ in shown.values()), reverse=True)
        least = max(best[most - 1] if len(best) >= most else 0, device // 100, 1)
        if bounds[number] < least:
            break
        change = CHANGES[number]
        found = _evaluated(spec, setup, change, before, device)
        if found is None or found.saved_bytes * 100 < device:
            continue
        entry = (found.saved_bytes, -number, found)
        shown[change.kind] = max(entry, shown.get(change.kind, entry), key=itemgetter(0, 1))
    ranked = sorted(shown.values(), key=itemgetter(0, 1), reverse=True)
    return tuple(found for _, _, found in ranked[:most])


def _bound(change: Change, spec: ModelSpec, prediction: Prediction) -> float:
    """What a change saves at most, in bytes; not known of a trace, whose peak is not the formula's."""
    if change.touches is _any or prediction.engine != "formula":
        return math.inf
    held = sum(row.charged for row in prediction.peak_rows if change.touches(row, spec.vocab))
    return whole_segments(held) + whole_segments(1)


def _evaluated(spec: ModelSpec, setup: Setup, change: Change, before: int, device: int) -> Suggestion | None:
    """The change by the formula; None where it contradicts what the person chose."""
    fields = change.fields(setup)
    try:
        after = peak_of(spec, changed(setup, fields))
    except UsageError:
        return None
    saved = whole_segments(before) - whole_segments(after)
    return Suggestion(change.text.format(**fields), fields, saved, device - saved)
