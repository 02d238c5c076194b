"""Which row is most likely wrong: every way in which one row could be wrong, tried against the gaps of all
moments and components.

A gap is predicted - measured. An explanation predicts gaps (a doubled row leaves + half its bytes wherever it
is alive); the one that removes most of what is open is the suspect, then the rest is explained again. Rows of
equal effect are told together: no guess is made.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memplan.planner.prediction import Row
from memplan.planner.tables.units import gib
from memplan.validate.consistency import expected_rows

TOTAL = "allocated"
MOST_SUSPECTS = 3
LEAST_SHARE = 0.5  # an explanation must remove at least this share of what is open,
# and equal the gap to this share in at least half of the numbers that it touches: size alone is not evidence
CLOSE = 0.03
# explanations this close in what they remove are told together: blocks are larger than their tensors by some
# slack
SLACK = 0.005
SMALLEST = 64 * 1024  # bytes of open gaps below which nothing is suspected: blocks are rounded
Key = tuple[str, str]  # (moment, component or TOTAL)
Gaps = Mapping[Key, int]


@dataclass(frozen=True)
class Suspect:
    """One gap explained. `ways` are the explanations with exactly this effect, likeliest first: (what is
    wrong, the row's name).
    """

    ways: tuple[tuple[str, str], ...]
    component: str
    moments: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    count: int
    bytes: int
    share: float

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows that one change would explain, each once."""
        return tuple(dict.fromkeys(name for _, name in self.ways))

    @property
    def change(self) -> str:
        """What would have to be wrong with the row, in words."""
        return self.ways[0][0]

    def __str__(self) -> str:
        first = [name for change, name in self.ways if change == self.change]
        more = len(self.rows) - len(first[:3])
        rows = " or ".join(first[:3]) + (
            f" (or one of {more} more whose bytes say the same)" if more > 0 else ""
        )
        shape = "x".join(map(str, self.shape))
        return (
            f"{rows}: {self.change}; {self.component}, {shape} {self.dtype}, {gib(self.bytes)}, in "
            f"{', '.join(self.moments)}"
        )

    def to_document(self) -> dict[str, Any]:
        """This suspect for JSON; bytes, and the share of the unexplained bytes."""
        return {
            "ways": [{"change": change, "row": name} for change, name in self.ways],
            "component": self.component,
            "moments": list(self.moments),
            "shape": list(self.shape),
            "dtype": self.dtype,
            "count": self.count,
            "bytes": self.bytes,
            "share": self.share,
        }


@dataclass(frozen=True)
class Explanation:
    """A row that could be wrong, how, and the gaps that this would leave. `plain`: how likely it is where the
    bytes alone cannot say.
    """

    row: Row
    change: str
    effect: tuple[tuple[Key, int], ...]
    plain: int

    @property
    def moments(self) -> tuple[str, ...]:
        """The moments whose gap this change affects, each once."""
        return tuple(dict.fromkeys(moment for (moment, _), _ in self.effect))


def explain(
    gaps: Gaps, rows: Mapping[str, Sequence[Row]], references: Sequence[Row] = ()
) -> tuple[tuple[Suspect, ...], dict[Key, int]]:
    """The suspects, most convincing first, and the gaps that they leave open."""
    left = dict(gaps)
    detailed = {moment for moment, what in left if what != TOTAL}
    candidates = _merged(
        _explanations(rows, references, tuple(dict.fromkeys(moment for moment, _ in left)), detailed)
    )
    found: list[Suspect] = []
    while len(found) < MOST_SUSPECTS and _open(left) >= SMALLEST:
        fitting = [
            (_removed(left, group[0].effect), group) for group in candidates if _equal(left, group[0].effect)
        ]
        most, best = max(fitting, key=lambda pair: (pair[0], pair[1][0].plain), default=(0, None))
        if best is None or most < LEAST_SHARE * _open(left):
            break
        as_good = [
            explanation
            for removed, group in fitting
            if removed >= (1 - SLACK) * most
            for explanation in group
        ]
        found.append(
            _suspect(sorted(as_good, key=lambda explanation: -explanation.plain), most / _open(left))
        )
        for key, size in best[0].effect:
            if key in left:
                left[key] -= size
    return tuple(found), left


def _suspect(as_good: Sequence[Explanation], share: float) -> Suspect:
    first = as_good[0]
    ways = tuple(dict.fromkeys((explanation.change, explanation.row.name) for explanation in as_good))
    row = first.row
    return Suspect(
        ways,
        row.component,
        first.moments,
        row.shape,
        row.dtype,
        row.count,
        abs(first.effect[0][1]),
        round(share, 4),
    )


def _open(gaps: Gaps) -> int:
    return sum(abs(size) for size in gaps.values())


def _removed(gaps: Gaps, effect: Iterable[tuple[Key, int]]) -> int:
    """How many open bytes an explanation removes; a gap that it would open counts against it."""
    return sum(abs(gaps[key]) - abs(gaps[key] - size) if key in gaps else 0 for key, size in effect)


def _equal(gaps: Gaps, effect: Sequence[tuple[Key, int]]) -> bool:
    """Whether the explanation's sizes are those of the gaps, within CLOSE, in at least half of the places
    that it speaks of.
    """
    known = [(gaps[key], size) for key, size in effect if key in gaps and size]
    return bool(known) and 2 * sum(abs(gap - size) <= CLOSE * abs(size) for gap, size in known) >= len(known)


def _merged(explanations: Iterable[Explanation]) -> list[list[Explanation]]:
    """Explanations of one and the same effect together, likeliest first."""
    groups: dict[tuple[tuple[Key, int], ...], list[Explanation]] = {}
    for explanation in explanations:
        groups.setdefault(tuple(sorted(explanation.effect)), []).append(explanation)
    return [sorted(group, key=lambda explanation: -explanation.plain) for group in groups.values()]


def _explanations(
    rows: Mapping[str, Sequence[Row]], references: Sequence[Row], moments: tuple[str, ...], detailed: set[str]
) -> Iterable[Explanation]:
    alive = _alive(rows, moments)
    usual = _usual_dtypes([next(iter(where.values())) for where in alive])
    for where in alive:
        row = next(iter(where.values()))
        kin = _kin(row)
        yield from _wrong_size(where, detailed, likely=kin in usual and row.dtype != usual[kin])
        yield from _wrong_place(where, moments, detailed)
    known = {(row.name, row.component) for moment in moments for row in rows.get(moment, ())}
    for expected in expected_rows(rows):
        if expected:
            first = next(iter(expected.values()))
            effect = _effect(
                {m: -row.charged for m, row in expected.items() if m in moments}, first, detailed
            )
            yield Explanation(first, "missing from the prediction", effect, 7)
    for row in references:
        if (row.name, row.component) not in known:
            yield from _absent(row, moments, detailed)


def _alive(rows: Mapping[str, Sequence[Row]], moments: tuple[str, ...]) -> list[dict[str, Row]]:
    """Each row at every moment where it is alive. Rows of one name, shape and dtype are told apart by their
    order.
    """
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for moment in moments:
        seen: Counter[tuple[Any, ...]] = Counter()
        for row in rows.get(moment, ()):
            key = (row.name, row.component, row.dtype, row.shape)
            found.setdefault((*key, seen[key]), {})[moment] = row
            seen[key] += 1
    return list(found.values())


_PROJECTION = re.compile(r"[a-z0-9]+_proj|lora_[AB]|_sq\b")


def _kin(row: Row) -> tuple[str, str]:
    """What a row shares with its siblings: its component, and its name without the projection that it belongs
    to.
    """
    return row.component, _PROJECTION.sub("*", row.name)


_FEWEST_SIBLINGS = 3  # fewer say nothing about what is usual


def _usual_dtypes(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """The commonest dtype among siblings, where there are enough of them: a row of another dtype is the odd
    one out.
    """
    seen: dict[tuple[str, str], Counter[str]] = {}
    for row in rows:
        seen.setdefault(_kin(row), Counter())[row.dtype] += 1
    return {
        kin: dtypes.most_common(1)[0][0] for kin, dtypes in seen.items() if dtypes.total() >= _FEWEST_SIBLINGS
    }


_SIZES: tuple[tuple[str, Callable[[int], int], int], ...] = (
    ("counted at twice its size (fp32 for a 16-bit tensor, or two of one)", lambda n: n // 2, 4),
    ("counted at half its size (16 bits for an fp32 tensor, or one of two)", lambda n: -n, 4),
    ("counted at four times its size", lambda n: n - n // 4, 2),
    ("counted at a quarter of its size", lambda n: -3 * n, 2),
)


def _wrong_size(where: Mapping[str, Row], detailed: set[str], likely: bool) -> Iterable[Explanation]:
    first = next(iter(where.values()))
    for change, wrong, plain in _SIZES:
        effect = _effect({moment: wrong(row.charged) for moment, row in where.items()}, first, detailed)
        yield Explanation(first, change, effect, plain + 4 * likely)
    yield Explanation(
        first,
        "predicted, but not there",
        _effect({m: row.charged for m, row in where.items()}, first, detailed),
        5,
    )


def _wrong_place(
    where: Mapping[str, Row], moments: tuple[str, ...], detailed: set[str]
) -> Iterable[Explanation]:
    """Alive in a moment where it was not predicted, not alive where it was, or one moment early or late."""
    first = next(iter(where.values()))
    for here, row in where.items():
        if len(where) > 1:
            yield Explanation(
                row, f"not alive at the peak of {here}", _effect({here: row.charged}, row, detailed), 3
            )
    for there in moments:
        if there in where:
            continue
        yield Explanation(
            first, f"alive at the peak of {there} too", _effect({there: -first.charged}, first, detailed), 3
        )
        for here, row in where.items():
            effect = _effect({here: row.charged, there: -row.charged}, row, detailed)
            yield Explanation(row, f"alive at the peak of {there}, not of {here}", effect, 3)


def _absent(row: Row, moments: tuple[str, ...], detailed: set[str]) -> Iterable[Explanation]:
    """A row known from elsewhere that the prediction lacks altogether: in every run of consecutive
    moments.
    """
    for begin in range(len(moments)):
        for end in range(begin + 1, len(moments) + 1):
            span = moments[begin:end]
            yield Explanation(
                row, "missing from the prediction", _effect({m: -row.charged for m in span}, row, detailed), 6
            )


def _effect(sizes: Mapping[str, int], row: Row, detailed: set[str]) -> tuple[tuple[Key, int], ...]:
    """The gaps at moments: the total always, the row's component where components were measured."""
    effect: list[tuple[Key, int]] = []
    for moment, size in sizes.items():
        effect.append(((moment, TOTAL), size))
        if moment in detailed:
            effect.append(((moment, row.component), size))
    return tuple(effect)
