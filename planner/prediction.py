"""The types that every engine answers in: Row, Breakdown, Peak, Prediction, and their JSON document.

Data flows one way: rows -> moments (breakdowns) -> peak -> verdict. All sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

from memplan.planner import __version__
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.accuracy import Accuracy
from memplan.planner.tables.components import COMPONENTS, Component
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.notebook import html_table
from memplan.planner.tables.units import gib

PREDICTION_SCHEMA = "memplan.prediction/1"


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of tensor: `bytes` is its size over all `count` of them, `block_bytes` what the allocator
    charges (trace only).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    count: int
    bytes: int
    component: Component
    why: str
    block_bytes: int | None = None

    @property
    def charged(self) -> int:
        """Bytes that count towards `allocated`: blocks where the allocator was replayed, tensor sizes
        elsewhere.
        """
        return self.bytes if self.block_bytes is None else self.block_bytes

    def to_document(self) -> dict[str, Any]:
        """This row as it stands in the memplan.prediction/1 document."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "count": self.count,
            "bytes": self.bytes,
            "block_bytes": self.block_bytes,
            "component": self.component,
            "why": self.why,
        }


class Breakdown(NamedTuple):
    """The rows alive at the peak of one moment; they add up to that moment's allocated bytes."""

    moment: str
    rows: tuple[Row, ...]

    @property
    def allocated_bytes(self) -> int:
        """Bytes allocated at this moment's peak: the sum of what its rows are charged."""
        return sum(row.charged for row in self.rows)

    @property
    def components(self) -> dict[str, int]:
        """Allocated bytes by component; every component is present, and they add up to `allocated_bytes`."""
        totals: dict[str, int] = dict.fromkeys(COMPONENTS, 0)
        for row in self.rows:
            totals[row.component] += row.charged
        return totals

    def to_document(self, explain: bool = False) -> dict[str, Any]:
        """This moment as it stands in the memplan.prediction/1 document, its rows with `explain`."""
        document: dict[str, Any] = {
            "name": self.moment,
            "allocated_bytes": self.allocated_bytes,
            "components": self.components,
        }
        if explain:
            document["rows"] = [row.to_document() for row in self.rows]
        return document


@dataclass(frozen=True, slots=True)
class Peak:
    """The three memory numbers at one moment: allocated, reserved, and device = reserved + CUDA context."""

    moment: str
    allocated_bytes: int
    reserved_bytes: int
    context_bytes: int

    @property
    def device_bytes(self) -> int:
        """Reserved bytes plus the CUDA context."""
        return self.reserved_bytes + self.context_bytes

    def to_document(self) -> dict[str, Any]:
        """This peak as it stands in the memplan.prediction/1 document."""
        return {
            "moment": self.moment,
            "allocated_bytes": self.allocated_bytes,
            "reserved_bytes": self.reserved_bytes,
            "context_bytes": self.context_bytes,
            "device_bytes": self.device_bytes,
        }


@dataclass(frozen=True, slots=True)
class Parts:
    """Whether loading alone, the training step alone and each moment `after` it alone fit one GPU, and the
    device bytes of each.
    """

    load: Literal["fits", "tight", "no"]
    step: Literal["fits", "tight", "no"]
    load_bytes: int
    step_bytes: int
    after: Mapping[str, tuple[Literal["fits", "tight", "no"], int]] = field(default_factory=dict)

    @property
    def _each(self) -> dict[str, tuple[str, int]]:
        return {"load": (self.load, self.load_bytes), "step": (self.step, self.step_bytes), **self.after}

    @property
    def decided_by(self) -> str | None:
        """The part that does not surely fit: load, step or a moment after it; both (several, of more than
        two) where more than one does not, None where all do.
        """
        short = [name for name, (verdict, _) in self._each.items() if verdict != "fits"]
        if len(short) > 1:
            return "several" if self.after else "both"
        return short[0] if short else None

    def to_document(self) -> dict[str, Any]:
        """The parts as they stand in the documents of plan and fit."""
        each = {name: {"verdict": word, "device_bytes": size} for name, (word, size) in self._each.items()}
        return {**each, "decided_by": self.decided_by}


@dataclass(frozen=True, slots=True)
class GpuVerdict:
    """Whether a prediction fits one GPU: `headroom_bytes` is usable minus predicted device bytes, negative
    where it does not fit. A GPU that cannot run the setup has neither, and `why`; where something is not
    counted, there is no verdict but `no`, and `why` says what.
    """

    name: str
    usable_bytes: int
    verdict: Literal["fits", "tight", "no"] | None
    headroom_bytes: int | None
    why: str | None = None
    high_bytes: int | None = None
    low: Callable[[], int] | None = field(default=None, compare=False, repr=False)
    parts: Parts | None = None

    @property
    def low_bytes(self) -> int | None:
        """The smallest capacity that survives here, context included; asked of a replay when first wanted."""
        return self.low() if self.low is not None else None

    @property
    def needed_bytes(self) -> int:
        """Device bytes that the prediction takes on this GPU; ValueError where it cannot run there."""
        if self.headroom_bytes is None:
            raise ValueError(f"{self.name}: {self.why}")
        return self.usable_bytes - self.headroom_bytes

    def to_document(self) -> dict[str, Any]:
        """This verdict as it stands in the memplan.prediction/1 document."""
        return {
            "name": self.name,
            "usable_bytes": self.usable_bytes,
            "verdict": self.verdict,
            "headroom_bytes": self.headroom_bytes,
            "low_bytes": self.low_bytes,
            "high_bytes": self.high_bytes,
            **({"parts": self.parts.to_document()} if self.parts is not None else {}),
            **({"why": self.why} if self.why is not None else {}),
        }


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """What a document says of the model: its name, its class, and the parameters that its checkpoint
    holds.
    """

    name: str
    architecture: str
    parameters: int
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_document(self) -> dict[str, Any]:
        """This model as it stands in the memplan.prediction/1 document."""
        return {
            **self.extra,
            "name": self.name,
            "architecture": self.architecture,
            "parameters": self.parameters,
        }


class Survival(Protocol):
    """A run that can be replayed under a bound, in bytes without the CUDA context."""

    def smallest_capacity(self, mode: Literal["native", "expandable"] | None = None) -> int:
        """The smallest capacity that survives, in an allocator mode (the setup's own)."""
        ...

    def survives(self, capacity: int, mode: Literal["native", "expandable"] | None = None) -> bool:
        """Whether the run survives under a capacity."""
        ...


@dataclass(frozen=True, slots=True, repr=False)
class Prediction:
    """What one engine predicts for one model and setup. `survival`: its run, where the smallest capacity is
    worked out only when asked for.
    """

    engine: Literal["formula", "trace"]
    model: ModelSummary
    setup: Setup
    trainable_parameters: int
    total_parameters: int
    checkpoint_bytes: int
    peak: Peak
    step_peak: Peak
    moments: tuple[Breakdown, ...]
    host_bytes: int = 0
    smallest_capacity_bytes: int | None = None
    not_modelled: tuple[str, ...] = ()  # what is not counted: a non-empty one has no verdict of `fits`
    gpus: tuple[GpuVerdict, ...] = ()
    accuracy: Accuracy = Accuracy()
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(
        default_factory=dict
    )  # engine-specific additions: bands, timeline, unknown ops
    survival: Survival | None = field(default=None, compare=False, repr=False)

    def __repr__(self) -> str:
        words = "; ".join(f"{word} {name}" for name, word in self._words())
        lower = "at least " if self.not_modelled else ""
        size = f"{lower}{gib(self.peak.device_bytes)}, peak in {self.peak.moment}"
        tail = f"; {words}" if words else ""
        return f"<Prediction {self.model.name} {self.setup.method}: {size}{tail}>"

    def _words(self) -> list[tuple[str, str]]:
        """The verdict on the GPU that was named; without one, none."""
        if self.setup.gpu is None:
            return []
        return [(verdict.name, verdict.verdict or "no verdict on") for verdict in self.gpus]

    def _repr_html_(self) -> str:
        """What a notebook shows: the device peak by component, and the verdict."""
        parts = self.moment(self.peak.moment).components
        rows = [(name.replace("_", " "), gib(size)) for name, size in parts.items()]
        rows.append(("fragmentation", gib(max(0, self.peak.reserved_bytes - self.peak.allocated_bytes))))
        rows += [("CUDA context", gib(self.peak.context_bytes)), ("device", gib(self.peak.device_bytes))]
        rows += [(f"verdict on {name}", word) for name, word in self._words()]
        rows += [("not counted", text) for text in self.not_modelled]
        setup = self.setup
        title = f"{self.model.name}, {setup.method}: {setup.micro_batch} x {setup.sequence_length} tokens"
        return html_table(title, rows)

    @property
    def capacity_bytes(self) -> int | None:
        """The smallest capacity that survives, CUDA context included; None where nothing was replayed."""
        if self.smallest_capacity_bytes is not None or self.survival is None:
            return self.smallest_capacity_bytes
        return self.survival.smallest_capacity() + self.peak.context_bytes

    def moment(self, name: str) -> Breakdown:
        """The breakdown of one moment; KeyError where the prediction has none of that name."""
        for breakdown in self.moments:
            if breakdown.moment == name:
                return breakdown
        raise KeyError(name)

    @property
    def peak_rows(self) -> tuple[Row, ...]:
        """The rows alive at the overall peak, largest first."""
        return tuple(sorted(self.moment(self.peak.moment).rows, key=lambda row: -row.charged))

    def with_(self, **changes: Any) -> Prediction:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_document(self, explain: bool = False) -> dict[str, Any]:
        """The contract's `memplan.prediction/1`; `rows` are alive at `peak.moment`."""
        return {
            **self.extra,
            "schema": PREDICTION_SCHEMA,
            "memplan_version": __version__,
            "engine": self.engine,
            "model": self.model.to_document(),
            "setup": self.setup.to_document(),
            "trainable_parameters": self.trainable_parameters,
            "total_parameters": self.total_parameters,
            "checkpoint_bytes": self.checkpoint_bytes,
            "peak": self.peak.to_document(),
            "step_peak": self.step_peak.to_document(),
            "moments": [moment.to_document(explain) for moment in self.moments],
            **({"rows": [row.to_document() for row in self.peak_rows]} if explain else {}),
            "host_bytes": self.host_bytes,
            "smallest_capacity_bytes": self.capacity_bytes,
            "not_modelled": list(self.not_modelled),
            "gpus": [gpu.to_document() for gpu in self.gpus],
            "accuracy": self.accuracy.to_document(),
            "assumptions": list(self.assumptions),
            "warnings": list(self.warnings),
        }


def check_schema(document: Mapping[str, Any], expected: str) -> None:
    """Refuse a document of another kind or of a newer major version (UsageError); keys not known are the
    reader's to drop.
    """
    found = document.get("schema")
    kind, _, major = expected.rpartition("/")
    if not isinstance(found, str) or not found.startswith(kind + "/"):
        raise UsageError(f"expected a document of schema {expected}, found {found!r}")
    if found.rpartition("/")[2] != major:
        raise UsageError(f"this version reads {expected}, the document is {found}: install a newer memplan")
