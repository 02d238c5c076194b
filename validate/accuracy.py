"""Accuracy: error statistics of reconciled runs by tier, engine, method, model, GPU, moment and component,
and the design's targets.

Errors are fractions of the measured number. Median, P95 and worst are of absolute errors; bias is the mean of
signed ones. P95 is the smallest value that at least 95 % of the runs do not exceed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memplan.planner import __version__
from memplan.planner.tables.units import MIB
from memplan.validate.collect import Skipped
from memplan.validate.reconcile import Difference, Reconciliation

SCHEMA = "memplan.validation/1"


@dataclass(frozen=True)
class Tier:
    """One promise of the design: an engine, the number it is judged by, and the most that its errors may
    be (`worst` None: no bound).
    """

    name: str
    engine: str
    what: str
    median: float
    p95: float
    worst: float | None


TIERS = (
    Tier("A", "trace", "allocated", 0.001, 0.005, 0.015),
    Tier("A'", "formula", "allocated", 0.01, 0.04, 0.08),
    Tier("B", "trace", "device", 0.01, 0.04, 0.06),
)
DRY_TIERS = (  # the trace against dry runs: the same bytes in at least 95 % of them
    Tier("D", "trace", "allocated", 0.0, 0.0, 0.01),
    Tier("D", "trace", "reserved", 0.005, 0.03, None),
)
FALSE_NO_SHARE = 0.01  # tier C: no false "fits" at all, and at most this share of false "does not"


@dataclass(frozen=True)
class Stats:
    """The errors of some numbers; None where there are none."""

    runs: int
    median: float | None = None
    p95: float | None = None
    worst: float | None = None
    bias: float | None = None
    within_1_mib: float | None = None

    def to_document(self) -> dict[str, Any]:
        """The statistics for JSON; errors are fractions of the measured value."""
        return {
            "runs": self.runs,
            "median": self.median,
            "p95": self.p95,
            "worst": self.worst,
            "bias": self.bias,
            "within_1_mib": self.within_1_mib,
        }


def stats(differences: Iterable[Difference]) -> Stats:
    """Statistics of differences whose measured number is not 0."""
    known = [d for d in differences if d.error is not None]
    if not known:
        return Stats(0)
    signed = [d.error for d in known if d.error is not None]
    sizes = sorted(abs(error) for error in signed)
    at = math.ceil(0.95 * len(sizes)) - 1
    near = sum(abs(d.bytes) <= MIB for d in known) / len(known)
    return Stats(len(known), statistics.median(sizes), sizes[at], sizes[-1], statistics.fmean(signed), near)


@dataclass(frozen=True)
class TierResult:
    """One accuracy target, and the errors of the runs that count toward it."""

    tier: Tier
    stats: Stats

    @property
    def kept(self) -> bool | None:
        """Whether the promise is kept; None where no run says anything."""
        s = self.stats
        if s.median is None or s.p95 is None or s.worst is None:
            return None
        bounded = self.tier.worst is None or s.worst <= self.tier.worst
        return s.median <= self.tier.median and s.p95 <= self.tier.p95 and bounded


@dataclass(frozen=True)
class Verdicts:
    """Tier C: how often fits / does not fit was right, over outcomes that say anything. `tight` is
    neither.
    """

    right: int
    false_fits: int
    false_no: int
    tight: int

    @property
    def kept(self) -> bool | None:
        """Whether the target for verdicts is met: no false fit, and few false noes. None where no verdict was
        judged.
        """
        judged = self.right + self.false_fits + self.false_no
        return None if not judged else self.false_fits == 0 and self.false_no <= FALSE_NO_SHARE * judged


@dataclass(frozen=True)
class Validation:
    """Everything that `memplan validate` shows."""

    runs: tuple[Reconciliation, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def own(self) -> tuple[Reconciliation, ...]:
        """Runs that count towards the tiers: on a GPU, neither dry nor of the development set."""
        return tuple(run for run in self.runs if run.gpu and not run.development and not run.dry)

    @property
    def dry(self) -> tuple[Reconciliation, ...]:
        """Dry runs, which have a tier of their own and count towards no other."""
        return tuple(run for run in self.runs if run.dry)

    @property
    def dry_tiers(self) -> tuple[TierResult, ...]:
        """The result of the targets for dry runs; empty without one."""
        return tuple(TierResult(tier, tier_stats(tier, self.dry)) for tier in DRY_TIERS if self.dry)

    @property
    def tiers(self) -> tuple[TierResult, ...]:
        """The result of every accuracy target, from GPU runs that were never used for tuning."""
        return tuple(TierResult(tier, tier_stats(tier, self.own)) for tier in TIERS)

    def verdicts(self, engine: str) -> Verdicts:
        """How often one engine's verdicts were right, wrong or tight."""
        words = [run.verdict for run in self.own if run.engine == engine]
        return Verdicts(
            words.count("right"), words.count("false_fits"), words.count("false_no"), words.count("tight")
        )

    @property
    def kept(self) -> bool:
        """Whether no tier is broken; a tier without runs breaks nothing."""
        engines = {run.engine for run in self.own}
        return all(result.kept is not False for result in (*self.tiers, *self.dry_tiers)) and all(
            self.verdicts(e).kept is not False for e in engines
        )


def tier_stats(tier: Tier, runs: Iterable[Reconciliation]) -> Stats:
    """The errors of the runs that count toward a tier, as fractions of the measured bytes."""
    return stats(run.tiers[tier.what] for run in runs if run.engine == tier.engine and tier.what in run.tiers)


GROUPS: dict[str, Callable[[Reconciliation], str]] = {
    "engine": lambda run: run.engine,
    "method": lambda run: run.method,
    "model": lambda run: run.model,
    "gpu": lambda run: run.gpu or "cpu",
}


def grouped(runs: Sequence[Reconciliation]) -> dict[str, dict[str, Stats]]:
    """Statistics of the allocated peak by engine, method, model and GPU; by moment and component of every
    number that a record has.
    """
    found: dict[str, dict[str, Stats]] = {}
    for name, key in GROUPS.items():
        found[name] = _by((key(run), run.tiers["allocated"]) for run in runs if "allocated" in run.tiers)
    found["tier"] = _by((what, d) for run in runs for what, d in run.tiers.items())
    found["moment"] = _by((d.moment, d) for run in runs for d in run.moments if d.what == "allocated")
    found["component"] = _by((d.what, d) for run in runs for d in run.moments if d.what != "allocated")
    return found


def _by(pairs: Iterable[tuple[str, Difference]]) -> dict[str, Stats]:
    groups: dict[str, list[Difference]] = {}
    for key, difference in pairs:
        groups.setdefault(key, []).append(difference)
    return {key: stats(differences) for key, differences in groups.items()}


def worst_first(runs: Iterable[Reconciliation]) -> list[Reconciliation]:
    """Runs by the size of their allocated error, largest first; those without one (oom) last."""
    return sorted(runs, key=lambda run: (run.error is None, -abs(run.error or 0.0), run.case))


def to_document(validation: Validation) -> dict[str, Any]:
    """memplan.validation/1: one entry a run and engine, then summaries of what counts and of the development
    set.
    """
    summary: dict[str, Any] = {}
    for engine in dict.fromkeys(run.engine for run in validation.runs):
        counted = [
            run for run in validation.runs if run.engine == engine and not run.development and not run.dry
        ]
        summary[engine] = {
            name: {key: s.to_document() for key, s in groups.items()}
            for name, groups in grouped(counted).items()
        }
    return {
        "schema": SCHEMA,
        "memplan_version": __version__,
        "runs": [run.to_document() for run in worst_first(validation.runs)],
        "skipped": [{"case": s.case, "engine": s.engine, "reason": s.reason} for s in validation.skipped],
        "tiers": {
            t.tier.name: {**t.stats.to_document(), "kept": t.kept, "limits": _limits(t.tier)}
            for t in validation.tiers
        },
        "dry_run": {
            f"{t.tier.name} {t.tier.what}": {
                **t.stats.to_document(),
                "kept": t.kept,
                "limits": _limits(t.tier),
            }
            for t in validation.dry_tiers
        },
        "verdicts": {engine: _verdicts(validation.verdicts(engine)) for engine in summary},
        "summary": summary,
        "development": _development(validation),
        "kept": validation.kept,
    }


def _limits(tier: Tier) -> dict[str, float | None]:
    return {"median": tier.median, "p95": tier.p95, "worst": tier.worst}


def _verdicts(found: Verdicts) -> Mapping[str, Any]:
    return {
        "right": found.right,
        "false_fits": found.false_fits,
        "false_no": found.false_no,
        "tight": found.tight,
        "kept": found.kept,
    }


def _development(validation: Validation) -> dict[str, Any]:
    runs = [run for run in validation.runs if run.development]
    return {
        engine: {
            what: stats(r.tiers[what] for r in runs if r.engine == engine and what in r.tiers).to_document()
            for what in ("allocated", "device")
        }
        for engine in dict.fromkeys(run.engine for run in runs)
    }
