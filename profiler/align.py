"""The allocator's history of one real step, aligned with the predicted sequence of allocations and frees.

The alignment is a longest common subsequence over (kind, bytes), moment by moment: an event is never matched
with one of another moment. What does not match is a kernel's hidden memory, a version's change or a bug; each
is kept, with the op and module that are known.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memplan.profiler.history import ALLOC, FREE, History, Span

MOST_EDITS = 300  # of one search; a longer difference is aligned piece by piece
_SURE = 8  # matches that make half a path worth going on from
# of one alignment: a GPU waits for it; what lies behind is counted as unmatched, and the summary says so
MOST_SECONDS = 20.0
MOST_GROUPS = 60  # kinds of unmatched events that a record keeps, largest first
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
Token = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Step:
    """One step's events by moment: what happened, how many bytes, and on whose behalf."""

    moments: Mapping[str, tuple[Token, ...]]
    owners: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # "module: op" for each event, where known


@dataclass
class _Tally:
    predicted: int = 0
    measured: int = 0
    matched: int = 0
    predicted_bytes: int = 0
    measured_bytes: int = 0
    matched_bytes: int = 0


def measured_step(history: History, step: int) -> Step:
    """The events of one recorded step. An event between two moments belongs to the one that it follows."""
    tokens: dict[str, list[Token]] = {}
    owners: dict[str, list[str]] = {}
    freed = _free_sizes(history)
    for span, begin, end in _stretches(history.spans(), step, len(history.events)):
        into, names = tokens.setdefault(span.moment, []), owners.setdefault(span.moment, [])
        for index in range(begin, end):
            event = history.events[index]
            if event.kind in (ALLOC, FREE):
                into.append((event.kind, freed.get(index, event.nbytes)))
                names.append(event.op)
    return Step({k: tuple(v) for k, v in tokens.items()}, {k: tuple(v) for k, v in owners.items()})


def _free_sizes(history: History) -> dict[int, int]:
    """The bytes of each free, from its allocation: some allocators report a block's size there."""
    live: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for index, event in enumerate(history.events):
        if event.kind == ALLOC:
            live[event.address] = event.nbytes
        elif event.kind == FREE and event.address in live:
            sizes[index] = live.pop(event.address)
    return sizes


def _stretches(spans: Sequence[Span], step: int, last: int) -> Iterator[tuple[Span, int, int]]:
    """(moment, begin, end) of a step's moments, each reaching to the next one's begin, so that no event falls
    between.
    """
    for index, span in enumerate(spans):
        if span.step == step:
            following = (
                spans[index + 1].begin
                if index + 1 < len(spans) and spans[index + 1].step == step
                else span.end
            )
            yield span, span.begin, min(following, last)


def align(predicted: Step, measured: Step) -> dict[str, Any]:
    """The aligned summary of one step, as a record keeps it: counts and bytes, shares in [0, 1], and what did
    not match.
    """
    total = _Tally()
    unmatched: Counter[tuple[str, str, str, int, str]] = Counter()
    end = time.monotonic() + MOST_SECONDS
    order = [*predicted.moments, *(moment for moment in measured.moments if moment not in predicted.moments)]
    for moment in order:
        ours, theirs = predicted.moments.get(moment, ()), measured.moments.get(moment, ())
        pairs = list(common(ours, theirs, end))
        total.predicted += len(ours)
        total.measured += len(theirs)
        total.matched += len(pairs)
        total.predicted_bytes += _allocated(ours)
        total.measured_bytes += _allocated(theirs)
        total.matched_bytes += _allocated(ours[i] for i, _ in pairs)
        _count(unmatched, "predicted", moment, ours, {i for i, _ in pairs}, predicted.owners.get(moment, ()))
        near = _nearest(pairs, len(theirs), predicted.owners.get(moment, ()), measured.owners.get(moment, ()))
        _count(unmatched, "measured", moment, theirs, {j for _, j in pairs}, near)
    groups = sorted(unmatched.items(), key=lambda item: (-item[0][3] * item[1], item[0]))
    return {
        "events": {"predicted": total.predicted, "measured": total.measured, "matched": total.matched},
        "bytes": {
            "predicted": total.predicted_bytes,
            "measured": total.measured_bytes,
            "matched": total.matched_bytes,
        },
        "matched_events_share": _share(total.matched, total.predicted, total.measured),
        "matched_bytes_share": _share(total.matched_bytes, total.predicted_bytes, total.measured_bytes),
        "unmatched": [
            {"only": side, "moment": moment, "kind": kind, "bytes": nbytes, "count": count, "where": where}
            for (side, moment, kind, nbytes, where), count in groups[:MOST_GROUPS]
        ],
        "unmatched_kinds": len(groups),
        "cut": time.monotonic() > end,
    }


def _share(matched: int, predicted: int, measured: int) -> float | None:
    return round(2 * matched / (predicted + measured), 6) if predicted + measured else None


def _allocated(tokens: Iterable[Token]) -> int:
    return sum(nbytes for kind, nbytes in tokens if kind == ALLOC)


def _count(
    into: Counter[tuple[str, str, str, int, str]],
    side: str,
    moment: str,
    tokens: Sequence[Token],
    matched: set[int],
    owners: Sequence[str],
) -> None:
    for index, (kind, nbytes) in enumerate(tokens):
        if index not in matched:
            where = _NUMBER.sub("*", owners[index]) if index < len(owners) else ""
            into[side, moment, kind, nbytes, where] += 1


def _nearest(
    pairs: Sequence[tuple[int, int]], count: int, owners: Sequence[str], own: Sequence[str]
) -> list[str]:
    """For each measured event: its own op where the observer knows it, and the predicted event that it
    follows.
    """
    before = [""] * count
    last, upcoming = "", iter([*pairs, (0, count)])
    i, j = next(upcoming)
    for index in range(count):
        if index == j:
            last = owners[i] if i < len(owners) else ""
            i, j = next(upcoming)
        known = own[index] if index < len(own) else ""
        before[index] = " after ".join(part for part in (known, last) if part)
    return before


def common(a: Sequence[Token], b: Sequence[Token], end: float = math.inf) -> Iterator[tuple[int, int]]:
    """Index pairs of a longest common subsequence (Myers' O(ND) search); beyond MOST_EDITS differences, of
    successive stretches.

    What occurs on one side alone cannot match and is left out of the search. `end`: the time (time.monotonic)
    after which no further stretch is searched.
    """
    shared = set(a) & set(b)
    left, right = ([index for index, token in enumerate(side) if token in shared] for side in (a, b))
    ours, theirs = [a[index] for index in left], [b[index] for index in right]
    i = j = 0
    while i < len(ours) and j < len(theirs) and time.monotonic() < end:
        pairs, i, j = _search(ours, theirs, i, j)
        yield from ((left[x], right[y]) for x, y in pairs)


def _next_on(furthest: Mapping[int, int], k: int, edits: int) -> int:
    """Where diagonal k goes on after one more edit: from the neighbor that is further ahead."""
    down = k == -edits or (k != edits and furthest.get(k - 1, -1) < furthest.get(k + 1, -1))
    return furthest.get(k + 1, 0) if down else furthest.get(k - 1, -1) + 1


def _equal_run(a: Sequence[Token], b: Sequence[Token], i: int, j: int) -> int:
    """How many tokens of a[i:] and b[j:] are equal, one after another."""
    most, found = min(len(a) - i, len(b) - j), 0
    while found < most and a[i + found] == b[j + found]:
        found += 1
    return found


def _search(
    a: Sequence[Token], b: Sequence[Token], i0: int, j0: int
) -> tuple[list[tuple[int, int]], int, int]:
    """Matches of a[i0:] and b[j0:] up to the end, or up to the furthest point that MOST_EDITS edits reach."""
    n, m = len(a) - i0, len(b) - j0
    furthest: dict[int, int] = {1: 0}
    trail: list[dict[int, int]] = []
    best, place = -1, (0, 0)
    for edits in range(min(n + m, MOST_EDITS) + 1):
        trail.append(furthest.copy())
        for k in range(-edits, edits + 1, 2):
            x = _next_on(furthest, k, edits)
            y = x - k
            if x > n or y > m or y < 0:
                furthest.pop(k, None)
                continue
            same = _equal_run(a, b, i0 + x, j0 + y)
            x, y = x + same, y + same
            furthest[k] = x
            if x + y > best:
                best, place = x + y, (x, y)
            if x >= n and y >= m:
                return _walk_back(trail, edits, x, y, i0, j0), len(a), len(b)
    x, y = place
    after = [*trail[1:], furthest]
    edits = next(d for d, reached in enumerate(after) if reached.get(x - y) == x)
    pairs = _walk_back(trail, edits, x, y, i0, j0)
    if len(pairs) < 2 * _SURE:
        return pairs, i0 + max(x, 1), j0 + max(y, 1)
    kept = pairs[
        : len(pairs) // 2
    ]  # how a path ends is a guess where the search was cut: go on from its middle
    return kept, kept[-1][0] + 1, kept[-1][1] + 1


def _walk_back(
    trail: list[dict[int, int]], edits: int, x: int, y: int, i0: int, j0: int
) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for d in range(edits, -1, -1):
        furthest, k = trail[d], x - y
        down = k == -d or (k != d and furthest.get(k - 1, -1) < furthest.get(k + 1, -1))
        before_k = k + 1 if down else k - 1
        before_x = furthest.get(before_k, 0)
        before_y = before_x - before_k
        while x > before_x and y > before_y and x > 0 and y > 0:
            x, y = x - 1, y - 1
            pairs.append((i0 + x, j0 + y))
        if d:
            x, y = before_x, before_y
    pairs.reverse()
    return pairs
