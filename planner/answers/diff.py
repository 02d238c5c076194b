"""diff: two predictions or measurements, moment by moment, component by component, row by row; what grew, and
by how much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.planner import __version__
from memplan.planner.inputs.setup import FIELDS
from memplan.planner.tables.errors import UsageError, shorten

SCHEMA = "memplan.diff/1"
KINDS = ("memplan.prediction", "memplan.measurement")
PEAKS = ("allocated_bytes", "reserved_bytes", "device_bytes")


@dataclass(frozen=True, slots=True)
class Difference:
    """One number of two documents: `what` says which, in the order moment, component, row."""

    what: tuple[str, ...]
    old: int
    new: int

    @property
    def moved(self) -> int:
        """The change, in the numbers' own unit: bytes."""
        return self.new - self.old

    @property
    def fraction(self) -> float | None:
        """The change as a fraction of the old number; None where that was 0."""
        return self.moved / self.old if self.old else None

    def to_document(self) -> dict[str, Any]:
        """The difference as the JSON of `diff` has it."""
        return {
            "what": list(self.what),
            "old_bytes": self.old,
            "new_bytes": self.new,
            "moved_bytes": self.moved,
            "fraction": self.fraction,
        }


@dataclass(frozen=True, slots=True)
class Diff:
    """Everything that differs, largest first within each kind. `grown` is the largest growth of a peak as a
    fraction.
    """

    peaks: tuple[Difference, ...]
    components: tuple[Difference, ...]
    rows: tuple[Difference, ...]
    settings: tuple[tuple[str, Any, Any], ...]

    @property
    def grown(self) -> float:
        """The largest growth among peaks and moments, as a fraction of the old bytes; 0 where none grew."""
        return max((change.fraction for change in self.peaks if change.fraction is not None), default=0.0)

    def beyond(self, fraction: float) -> list[Difference]:
        """The peaks and moments that grew by more than a fraction."""
        return [
            change
            for change in self.peaks
            if change.moved > 0 and (change.fraction is None or change.fraction > fraction)
        ]

    def to_document(self) -> dict[str, Any]:
        """The JSON of `diff`."""
        return {
            "schema": SCHEMA,
            "memplan_version": __version__,
            "grown": self.grown,
            "peaks": [change.to_document() for change in self.peaks],
            "components": [change.to_document() for change in self.components],
            "rows": [change.to_document() for change in self.rows],
            "settings": [{"field": name, "old": old, "new": new} for name, old, new in self.settings],
        }


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> Diff:
    """The difference of two documents of one kind. UsageError where one is not a prediction or a measurement,
    or the kinds differ.
    """
    kinds = [_kind(document, word) for document, word in ((old, "first"), (new, "second"))]
    if kinds[0] != kinds[1]:
        raise UsageError(f"the first document is a {kinds[0]}, the second a {kinds[1]}: give two of one kind")
    for document, word in ((old, "first"), (new, "second")):
        if _number(document.get("peak"), "allocated_bytes") is None:
            outcome = document.get("outcome")
            ended = (
                f": that run ended in '{shorten(str(outcome), 20)}'"
                if outcome not in (None, "ok")
                else ": it is not a whole document"
            )
            raise UsageError(f"the {word} document has no peak.allocated_bytes{ended}")
    peaks = [change for name in ("peak", "step_peak") for change in _peak(name, old.get(name), new.get(name))]
    left, right = _moments(old), _moments(new)
    for moment in left.keys() | right.keys():
        peaks += _changed(
            (moment,),
            _number(left.get(moment), "allocated_bytes"),
            _number(right.get(moment), "allocated_bytes"),
        )
    components = [
        change
        for moment in left.keys() & right.keys()
        for change in _components(moment, left[moment], right[moment])
    ]
    rows = [
        change
        for moment in left.keys() & right.keys()
        for change in _rows(moment, left[moment], right[moment])
    ]
    if not any("rows" in moment for moment in (*left.values(), *right.values())):
        rows = _rows("peak", old, new)
    return Diff(_sorted(peaks), _sorted(components), _sorted(rows), tuple(_settings(old, new)))


def _kind(document: Mapping[str, Any], word: str) -> str:
    schema = str(document.get("schema", ""))
    kind, _, version = schema.partition("/")
    if kind not in KINDS:
        raise UsageError(
            f"the {word} document has schema '{shorten(schema, 40)}': expected {KINDS[0]}/1 or {KINDS[1]}/1"
        )
    if version != "1":
        raise UsageError(
            f"the {word} document is {shorten(schema, 40)}, this version reads {kind}/1: install a newer "
            "memplan"
        )
    return kind.removeprefix("memplan.")


def _sorted(changes: list[Difference]) -> tuple[Difference, ...]:
    return tuple(sorted(changes, key=lambda change: (-abs(change.moved), change.what)))


def _changed(what: tuple[str, ...], old: int | None, new: int | None) -> list[Difference]:
    if old is None or new is None or old == new:
        return []
    return [Difference(what, old, new)]


def _number(table: Any, key: str) -> int | None:
    value = table.get(key) if isinstance(table, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _peak(name: str, old: Any, new: Any) -> list[Difference]:
    return [
        change
        for key in PEAKS
        for change in _changed((name, key.removesuffix("_bytes")), _number(old, key), _number(new, key))
    ]


def _moments(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    moments = document.get("moments")
    if not isinstance(moments, list):
        return {}
    return {str(moment.get("name")): moment for moment in moments if isinstance(moment, Mapping)}


def _components(moment: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    left, right = old.get("components"), new.get("components")
    if not isinstance(left, Mapping) or not isinstance(right, Mapping):
        return []
    names = [str(name) for name in {**left, **right}]
    return [
        change
        for name in names
        for change in _changed((moment, name), _number(left, name) or 0, _number(right, name) or 0)
    ]


def _rows(moment: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    left, right = _by_row(old.get("rows")), _by_row(new.get("rows"))
    if not left or not right:
        return []
    return [
        change
        for key in left.keys() | right.keys()
        for change in _changed((moment, *key), left.get(key, 0), right.get(key, 0))
    ]


def _by_row(rows: Any) -> dict[tuple[str, ...], int]:
    """Bytes by component, name and reason (for the trace: the module and the op), rows of one name added
    up.
    """
    found: dict[tuple[str, ...], int] = {}
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, Mapping):
            key = (str(row.get("component")), str(row.get("name")), str(row.get("why", "")))
            charged = _number(row, "block_bytes")
            found[key] = found.get(key, 0) + (charged if charged is not None else _number(row, "bytes") or 0)
    return found


def _settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    left, right = old.get("setup"), new.get("setup")
    if not isinstance(left, Mapping) or not isinstance(right, Mapping):
        return []
    known = (
        key for key in sorted(FIELDS) if key in left or key in right
    )  # a reader ignores keys that it does not know
    return [(key, left.get(key), right.get(key)) for key in known if left.get(key) != right.get(key)]
