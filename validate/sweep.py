"""One part of a claim, checked: at one point, over named values, or over a range whose boundary is found by
bisection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from memplan.planner.tables.errors import UsageError
from memplan.profiler.localized_message import LocalizedMessage, said
from memplan.validate.bands import Point, has_band, with_bands
from memplan.validate.checks import CHECKS
from memplan.validate.chinese import in_language
from memplan.validate.claimsfile import Claimed, Over, Part
from memplan.validate.engines import Missing
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.numbers import Value, displayed, number, shown

Verdict = Literal["supported", "refuted", "depends", "not_checkable"]
_SAMPLES = (
    6  # interior points of a range that are tried, so that a change and its reversal are not both missed
)


@dataclass(frozen=True)
class Boundary:
    """Where a part's truth changes: between neighboring values of a range, or between named values (`yes`
    and `no`).
    """

    name: str
    low: int = 0
    high: int = 0
    low_holds: bool = True
    yes: tuple[str, ...] = ()
    no: tuple[str, ...] = ()

    def said(self, lang: str = "en") -> str:
        """The limit in words, in one language."""
        if self.yes or self.no:
            yes, no = (_names(tuple(displayed(n, self.name) for n in names)) for names in (self.yes, self.no))
            return said("holds for {yes}; fails for {no}", yes=yes, no=no).text(in_language(lang))
        template = (
            "holds up to {name} {low}, fails from {high}"
            if self.low_holds
            else "fails up to {name} {low}, holds from {high}"
        )
        name = said(self.name.replace("_", " "))
        return said(template, name=name, low=number(self.low), high=number(self.high)).text(in_language(lang))

    def to_document(self) -> dict[str, Any]:
        """The limit for JSON: the last value that holds, or the values that do and do not."""
        if self.yes or self.no:
            return {"name": self.name, "holds_for": list(self.yes), "not_for": list(self.no)}
        return {
            "name": self.name,
            "low": self.low,
            "high": self.high,
            "holds": "low" if self.low_holds else "high",
        }


def _names(names: tuple[str, ...]) -> LocalizedMessage:
    """Names in a list: the sign between them is the language's."""
    listed = said("{name}", name=names[0])
    for name in names[1:]:
        listed = said("{head}, {tail}", head=listed, tail=name)
    return listed


@dataclass(frozen=True)
class PartResult:
    """What came of a part: `found` is None where it could not be checked or where it depends; `boundaries`
    say on what.
    """

    part: Part
    verdict: Verdict
    found: Value | None
    evidence: LocalizedMessage
    boundaries: tuple[Boundary, ...] = ()
    spread: tuple[float, float] | None = None  # least and most that was found, where it is a number

    @property
    def condition(self) -> str:
        """What the verdict depends on, in English; empty where it does not."""
        return self.said()

    def said(self, lang: str = "en") -> str:
        """What the verdict depends on, in one language."""
        return in_language(lang)("; ").join(boundary.said(lang) for boundary in self.boundaries)

    def to_document(self) -> dict[str, Any]:
        """This part as it stands in the memplan.claims/1 document."""
        part = self.part
        claimed = list(part.claimed) if isinstance(part.claimed, tuple) else part.claimed
        return {
            "what": part.what,
            "zh": part.zh,
            "claimed": claimed,
            "relation": part.relation,
            "tolerance": part.tolerance,
            "found": self.found,
            "unit": part.unit,
            "verdict": self.verdict,
            "evidence": str(self.evidence),
            "evidence_zh": self.evidence.text(in_language("zh")),
            "condition": self.condition or None,
            "boundaries": [boundary.to_document() for boundary in self.boundaries],
            "case": part.case or None,
            "decides": part.decides,
            "turns_at": list(self.spread) if part.chosen and self.spread is not None else None,
        }


def holds(found: Value, claimed: Claimed, relation: str, tolerance: float) -> bool:
    """Whether a found value satisfies `relation claimed`; `tolerance` is relative and widens = alone."""
    if relation == "between" and isinstance(claimed, tuple) and not isinstance(found, str):
        return claimed[0] <= found <= claimed[1]
    if (
        isinstance(found, str)
        or isinstance(claimed, str | tuple)
        or isinstance(found, bool)
        or isinstance(claimed, bool)
    ):
        return type(found) is type(claimed) and found == claimed
    if relation == "=":
        return abs(found - claimed) <= tolerance * abs(claimed)
    comparisons: dict[str, Callable[[float, float], bool]] = {
        "<": lambda a, b: a < b,
        "<=": lambda a, b: a <= b,
        ">": lambda a, b: a > b,
        ">=": lambda a, b: a >= b,
    }
    return comparisons[relation](found, claimed)


def check_part(part: Part, context: EvaluationContext) -> PartResult:
    """The verdict of one part. Raises UsageError for what the file got wrong; what is missing becomes
    not_checkable.
    """
    try:
        if part.over is None and CHECKS[part.check].each is not None:
            return _over_each(part, context)
        if part.over is None:
            point = _point(part, None, context)
            verdict: Verdict = "supported" if point.holds else "refuted"
            return PartResult(part, verdict, point.found.value, point.found.evidence, spread=_spread([point]))
        return (
            _over_values(part, part.over, context)
            if part.over.values
            else _over_range(part, part.over, context)
        )
    except Missing as missing:
        return PartResult(part, "not_checkable", None, said("missing: {what}", what=missing.said))


def _point(part: Part, at: Any, context: EvaluationContext) -> Point:
    if part.over is not None:
        part = _bound(part, part.over.key, at)
    run = CHECKS[part.check].run
    if run is None:
        raise UsageError(
            f"over: a check of kind {part.check} takes none: it goes over every recorded model by itself"
        )
    found = run(part, context)
    return Point(at, found, holds(found.value, part.claimed, part.relation, part.tolerance))


def _bound(part: Part, key: str, value: Any) -> Part:
    """The part with what it leaves open set to `value`."""
    if key in ("model", "gpu"):
        return replace(part, **{key: value})
    if key.startswith("setup."):
        return replace(part, setup={**part.setup, key.removeprefix("setup."): value})
    raise UsageError(f"over.key is '{key}': expected model, gpu or setup.FIELD")


def _over_values(part: Part, over: Over, context: EvaluationContext) -> PartResult:
    points, unknown_at, reason = [], [], said("")
    for value in over.values:
        try:
            points.append(_point(part, value, context))
        except Missing as missing:
            unknown_at.append(_name(value))
            reason = missing.said
    if not points:
        raise Missing(reason)
    result = _of_points(part, over.key.removeprefix("setup."), points)
    if not unknown_at:
        return result
    also = said(
        "{evidence}; not checkable for {names}: {reason}",
        evidence=result.evidence,
        names=_names(tuple(displayed(n, over.key) for n in unknown_at)),
        reason=reason,
    )
    return replace(result, evidence=also)


def _over_each(part: Part, context: EvaluationContext) -> PartResult:
    """A check that finds several things at once, each under its own name."""
    each = CHECKS[part.check].each
    assert each is not None
    points = [
        Point(name, found, holds(found.value, part.claimed, part.relation, part.tolerance))
        for name, found in each(part, context).items()
    ]
    return _of_points(part, part.check, points)


def _of_points(part: Part, key: str, points: list[Point]) -> PartResult:
    yes, no = tuple(_name(p.at) for p in points if p.holds), tuple(_name(p.at) for p in points if not p.holds)
    verdict: Verdict = "depends" if yes and no else "supported" if yes else "refuted"
    evidence = said(
        "{points}",
        points=tuple(
            said("{at}: {evidence}", at=displayed(_name(p.at), key), evidence=p.found.evidence)
            for p in points
        ),
    )
    boundaries = (Boundary(key, yes=yes, no=no),) if verdict == "depends" else ()
    found = points[-1].found.value if len(points) == 1 else None
    return PartResult(part, verdict, found, evidence, boundaries, _spread(points))


def _spread(points: list[Point]) -> tuple[float, float] | None:
    """The least and the most that was found; None where it is no number."""
    values = [p.found.value for p in points]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return (min(numbers), max(numbers)) if numbers and len(numbers) == len(values) else None


def _over_range(part: Part, over: Over, context: EvaluationContext) -> PartResult:
    """Sampled on a geometric grid, then bisected at every change: exact to one unit of the field that the
    text leaves open.
    """
    steps = _SAMPLES + 1
    doubled = {2**n for n in range(over.high.bit_length()) if over.low <= 2**n} if has_band(part) else set()
    grid = sorted(
        {round(over.low * (over.high / over.low) ** (i / steps)) for i in range(steps + 1)}
        | {over.low, over.high}
        | doubled
    )
    points = with_bands(
        part, [_point(part, at, context) for at in grid], lambda at: _point(part, at, context)
    )
    changes = [
        _change(part, a, b, context) for a, b in zip(points, points[1:], strict=False) if a.holds != b.holds
    ]
    name = over.key.removeprefix("setup.")
    if changes:
        evidence = said("{points}", points=tuple(_at(name, p) for pair in changes for p in pair))
        limits = tuple(_boundary(name, *pair) for pair in changes)
        return PartResult(part, "depends", None, evidence, limits, _spread(points))
    last = points[-1]
    evidence = said("{points}", points=(_at(name, points[0]), _at(name, last)))
    verdict: Verdict = "supported" if last.holds else "refuted"
    beyond = _beyond(part, over, last, context)
    found = last.found.value if isinstance(last.found.value, bool) else None
    if beyond is None:
        return PartResult(part, verdict, found, evidence, spread=_spread(points))
    evidence = said("{points}", points=tuple(_at(name, p) for p in (points[0], last, *beyond)))
    return PartResult(part, verdict, found, evidence, (_boundary(name, *beyond),), _spread(points))


def _at(name: str, point: Point) -> LocalizedMessage:
    return said(
        "{name} {at}: {evidence}",
        name=said(name.replace("_", " ")),
        at=number(point.at),
        evidence=point.found.evidence,
    )


def _beyond(part: Part, over: Over, last: Point, context: EvaluationContext) -> tuple[Point, Point] | None:
    """The change beyond the range that decides, up to `explore`; None where there is none."""
    at = last
    while at.at < over.explore:
        further = _point(part, min(at.at * 2, over.explore), context)
        if further.holds != at.holds:
            return _change(part, at, further, context)
        at = further
    return None


def _change(part: Part, low: Point, high: Point, context: EvaluationContext) -> tuple[Point, Point]:
    """The neighboring points between which the part's truth changes."""
    while high.at - low.at > 1:
        middle = _point(part, (low.at + high.at) // 2, context)
        low, high = (middle, high) if middle.holds == low.holds else (low, middle)
    return low, high


def _boundary(name: str, low: Point, high: Point) -> Boundary:
    return Boundary(name, low.at, high.at, low.holds)


def _name(value: Any) -> str:
    return (
        value
        if isinstance(value, str)
        else shown(value)
        if isinstance(value, int | float)
        else "+".join(map(str, value))
    )
