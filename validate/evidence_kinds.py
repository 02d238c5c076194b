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
OUTSIDE = (DRY_RUN, PUBLISHED, OWN)
"""What does not rest on memplan's own prediction: torch's own CUDA code, and measurements."""


def kind_of(result: PartResult) -> str:
    """The kind of evidence of one part; empty where nothing was found."""
    return "" if result.verdict == "not_checkable" else KINDS[result.part.check]


def kinds_of(results: Iterable[PartResult]) -> list[str]:
    """The kinds of evidence of a claim, each once, in the order of its parts."""
    return list(dict.fromkeys(kind for kind in map(kind_of, results) if kind))


def counted(found: Iterable[Iterable[str]]) -> dict[str, int]:
    """On how many claims each kind of evidence bears, every kind named; `found`: the kinds of each claim."""
    listed = [set(kinds) for kinds in found]
    return {kind: sum(kind in kinds for kinds in listed) for kind in dict.fromkeys(KINDS.values()) if kind}


def beside(found: Iterable[Iterable[str]]) -> int:
    """How many claims have a published figure, a dry run or an own measurement beside what is predicted."""
    return sum(bool(set(kinds) & set(OUTSIDE)) for kinds in found)
