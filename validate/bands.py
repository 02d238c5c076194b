"""A band of numbers that a claim allows, searched for in a range: samples alone would step over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memplan.validate.claimsfile import Part
from memplan.validate.found import Found


@dataclass(frozen=True)
class Point:
    """One value that was tried, what was found there, and whether the claim holds at it."""

    at: Any
    found: Found
    holds: bool


def has_band(part: Part) -> bool:
    """Whether a part allows a band of numbers: a value within a tolerance, or between two."""
    number = isinstance(part.claimed, tuple | int | float) and not isinstance(part.claimed, bool)
    return number and part.relation in ("=", "between")


def with_bands(part: Part, points: list[Point], tried: Callable[[int], Point]) -> list[Point]:
    """The points, and between neighbors that lie on both sides of what is claimed, or around one that comes
    nearer to it than both, the point nearest to it: a narrow band is not stepped over.
    """
    if not has_band(part):
        return points
    offs = [_off(part, point) for point in points]
    if any(off is None for off in offs):
        return points
    off = [value for value in offs if value is not None]
    extra = []
    for n in range(len(points) - 1):
        if off[n] * off[n + 1] < 0:
            extra += _crossing(part, points[n], points[n + 1], tried)
    for n in range(1, len(points) - 1):
        around = (off[n - 1], off[n], off[n + 1])
        if all(around) and min(around) * max(around) > 0 and abs(off[n]) <= min(map(abs, around)):
            extra.append(_nearest(part, points[n - 1], points[n], points[n + 1], tried))
    return sorted([*points, *extra], key=lambda point: point.at)


def _off(part: Part, point: Point) -> float | None:
    """By how much what was found misses the claimed band, below it negative, inside 0; None where there is no
    band of numbers.
    """
    found, claimed = point.found.value, part.claimed
    if isinstance(found, bool | str) or isinstance(claimed, bool | str):
        return None
    if isinstance(claimed, tuple):
        low, high = claimed
    elif part.relation == "=":
        low, high = sorted((claimed * (1 - part.tolerance), claimed * (1 + part.tolerance)))
    else:
        return None
    return found - low if found < low else found - high if found > high else 0.0


def _crossing(part: Part, low: Point, high: Point, tried: Callable[[int], Point]) -> list[Point]:
    """The points nearest to the band between one below it and one above it; the first inside, if any is."""
    below = (_off(part, low) or 0.0) < 0
    while high.at - low.at > 1:
        middle = tried((low.at + high.at) // 2)
        off = _off(part, middle) or 0.0
        if off == 0.0:
            return [middle]
        low, high = (middle, high) if (off < 0) == below else (low, middle)
    return []


def _nearest(part: Part, low: Point, best: Point, high: Point, tried: Callable[[int], Point]) -> Point:
    """By golden section, the point between two neighbors that comes nearest to the band."""
    left, right = low.at, high.at
    while right - left > 2 and _off(part, best):
        gap_left, gap_right = best.at - left, right - best.at
        at = (
            best.at - max(1, round(gap_left * 0.382))
            if gap_left > gap_right
            else best.at + max(1, round(gap_right * 0.382))
        )
        if not left < at < right:
            break
        new = tried(at)
        if abs(_off(part, new) or 0.0) < abs(_off(part, best) or 0.0):
            left, right = (left, best.at) if at < best.at else (best.at, right)
            best = new
        else:
            left, right = (at, right) if at < best.at else (left, at)
    return best
