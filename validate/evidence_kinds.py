"""What kind of evidence each check gives: the word that stands beside a verdict."""

from __future__ import annotations

from collections.abc import Iterable

from memplan.validate.sweep import PartResult

PREDICTED, PUBLISHED, OWN = "predicted", "published measurement", "own measurement"
DRY_RUN = "dry run"
KINDS: dict[str, str] = {
    "quantity": PREDICTED,
    "fits": PREDICTED,
    "setup_field": PREDICTED,
    "row_dtype": PREDICTED,
    "library_fact": "library run",
    "arithmetic": "arithmetic",
    "time_ratio": OWN,
    "measured": OWN,
    "published": PUBLISHED,
    "published_times": PUBLISHED,
    "release": "library source",
    "dry_run": DRY_RUN,
    "quality": "",
}
"""Check kind -> kind of evidence; empty: there is none."""


def kind_of(result: PartResult) -> str:
    """The kind of evidence of one part; empty where nothing was found."""
    return "" if result.verdict == "not_checkable" else KINDS[result.part.check]


def kinds_of(results: Iterable[PartResult]) -> list[str]:
    """The kinds of evidence of a claim, each once, in the order of its parts."""
    return list(dict.fromkeys(kind for kind in map(kind_of, results) if kind))
