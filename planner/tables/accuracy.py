"""How far a prediction may be off, and what says so: the types. All errors are shares of what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple


class QuantityError(NamedTuple):
    """Absolute errors of one quantity (allocated, reserved or device) over some runs."""

    runs: int
    median: float
    p95: float
    worst: float

    def to_document(self) -> dict[str, Any]:
        """These errors for JSON."""
        return {
            "runs": self.runs,
            "median_error": self.median,
            "p95_error": self.p95,
            "worst_error": self.worst,
        }


@dataclass(frozen=True, slots=True)
class PublishedEvidence:
    """What runs that others published say of one prediction: how many are like it, on which GPUs, and how far
    the engine was from them; `other_libraries` more are like it but not counted. The nearest run may be none
    of them: `nearest_differs` names the traits in which it is another.
    """

    runs: int = 0
    gpus: tuple[str, ...] = ()
    errors: Mapping[str, QuantityError] = field(default_factory=dict)
    other_libraries: int = 0
    nearest: str | None = None
    nearest_differs: tuple[str, ...] = ()
    nearest_errors: Mapping[str, float] = field(default_factory=dict)
    dry_runs: int = 0
    dry_run_errors: Mapping[str, QuantityError] = field(default_factory=dict)

    def to_document(self) -> dict[str, Any]:
        """This evidence for JSON; dry runs stand apart from runs on a GPU."""
        return {
            "runs": self.runs,
            "gpus": list(self.gpus),
            "errors": {name: error.to_document() for name, error in self.errors.items()},
            "other_libraries": self.other_libraries,
            "nearest_run": self.nearest,
            "nearest_differs": list(self.nearest_differs),
            "nearest_errors": dict(self.nearest_errors),
            "dry_runs": {
                "runs": self.dry_runs,
                "errors": {name: error.to_document() for name, error in self.dry_run_errors.items()},
            },
        }


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How far this engine was from runs like this one: fractions of the allocated peak. None where no run says
    anything.

    `device_error`: the worst error of the device peak over the same runs, which counts what the allocator
    holds beyond the tensors. `margin_share`: what our own recorded runs alone say of a verdict's margin.
    """

    median_error: float | None = None
    worst_error: float | None = None
    runs: int = 0
    evidence: str = "no recorded run of this engine"
    nearest_run: str | None = None
    device_error: float | None = None
    margin_share: float | None = None
    published: PublishedEvidence | None = None

    @property
    def margin(self) -> float:
        """The share by which our own recorded runs widen a verdict; published ones do so by class
        (tables/reserved_errors.py).
        """
        if self.margin_share is not None:
            return self.margin_share
        return max(self.worst_error or 0.0, self.device_error or 0.0)

    def with_(self, **changes: Any) -> Accuracy:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_document(self) -> dict[str, Any]:
        """This accuracy as it stands in the memplan.prediction/1 document; errors are fractions."""
        return {
            "median_error": self.median_error,
            "worst_error": self.worst_error,
            "runs": self.runs,
            "evidence": self.evidence,
            "nearest_run": self.nearest_run,
            "device_error": self.device_error,
            "published": self.published.to_document() if self.published is not None else None,
        }
