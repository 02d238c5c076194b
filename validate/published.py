"""Runs that others published, as rows of data: one JSON object a line in published_data/runs.jsonl, each with
its source, license, settings, caveats and library versions. They count towards no tier and tune nothing.

A row has a `setup` (Setup fields), or `unexpressed`: why memplan has none for it. `measured` is in bytes by
quantity: allocated and reserved are torch's counters over the training step, device is what nvidia-smi or
NVML showed of the whole run. quality A: every setting known, the same libraries; B: every setting known,
another implementation or release; C: a setting is missing and assumed.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from memplan.planner.tables.errors import UsageError, nearest, shorten
from memplan.validate.library_differences import DIFFERENCES
from memplan.validate.scored_runs import QUANTITIES

DATA = Path(__file__).with_name("published_data")
RUNS = DATA / "runs.jsonl"
TIMES = Path(__file__).with_name("published.toml")
QUALITY = ("A", "B", "C")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRun:
    """One published run and everything that was said about how it was measured; sizes in bytes."""

    id: str
    model: str  # as the catalog has it
    measured: Mapping[str, int]
    metric: str
    quality: Literal["A", "B", "C"]
    source: str
    license: str | None
    versions: Mapping[str, str]
    note: str
    setup: Mapping[str, Any] | None = None
    unexpressed: str = ""
    published_model: str = ""
    differs: tuple[str, ...] = ()  # differences that the run itself states
    development: bool = False  # it guided the design
    value_bytes: int | None = None  # where which quantity was printed is not said
    step_seconds: float | None = None
    tokens_per_second: float | None = None

    @property
    def differences(self) -> tuple[str, ...]:
        """What its libraries did otherwise: names of DIFFERENCES, stated or told by its versions."""
        told = (
            name
            for name, row in DIFFERENCES.items()
            if self.setup is not None and row.holds(self.model, self.setup, self.versions)
        )
        return tuple(dict.fromkeys((*self.differs, *told)))

    @property
    def put_back(self) -> tuple[str, ...]:
        """The differences that the trace can put back; none where one of the others stays."""
        names = self.differences
        if any(not (DIFFERENCES[name].put_back or DIFFERENCES[name].counted) for name in names):
            return ()
        return tuple(name for name in names if DIFFERENCES[name].put_back)

    @property
    def release(self) -> str:
        """The earlier transformers for which the formula has rules; "" where a further difference stays."""
        rows = [DIFFERENCES[name] for name in self.differences if not DIFFERENCES[name].counted]
        found = {row.release for row in rows}
        return found.pop() if len(found) == 1 else ""

    @property
    def counted(self) -> bool:
        """Whether its errors say how far memplan is from reality: no library did otherwise, or that is put
        back, or it is chance.
        """
        return self.setup is not None and all(
            DIFFERENCES[name].put_back or DIFFERENCES[name].counted for name in self.differences
        )

    @property
    def published_bytes(self) -> int:
        """The first quantity that was published, in bytes."""
        return next(iter(self.measured.values()), self.value_bytes or 0)


@dataclass(frozen=True, kw_only=True)
class Times:
    """What the same work took by several methods, in one unit, as others published it: `took` in a unit of
    time, or `rate` in work a unit of time.
    """

    id: str
    unit: str
    source: str
    took: Mapping[str, float] = field(default_factory=dict)
    rate: Mapping[str, float] = field(default_factory=dict)

    def has(self, *methods: str) -> bool:
        """Whether every one of these methods was timed."""
        return all(method in (self.took or self.rate) for method in methods)

    def pair(self, slow: str, fast: str) -> tuple[float, float, float]:
        """How many times as long `slow` took as `fast`, and the two numbers as published."""
        if self.took:
            return self.took[slow] / self.took[fast], self.took[slow], self.took[fast]
        return self.rate[fast] / self.rate[slow], self.rate[slow], self.rate[fast]


@dataclass(frozen=True)
class Figure:
    """A peak that others published of a run whose settings memplan has no Setup for, in GB (10^9 bytes)."""

    id: str
    gb: float
    source: str
    model: str = ""

    @property
    def published_bytes(self) -> int:
        """The figure in bytes."""
        return round(self.gb * 1e9)


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _sizes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        key in QUANTITIES and isinstance(v, int) and not isinstance(v, bool) and v > 0
        for key, v in value.items()
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def is_text(value: Any) -> bool:
    """Whether a value is a text with something in it."""
    return isinstance(value, str) and bool(value)


EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("id", "model", "metric", "source", "note"), (is_text, "a text")),
    **dict.fromkeys(("unexpressed", "published_model"), (is_text, "a text")),
    "license": (lambda v: v is None or is_text(v), "a license's SPDX name, or null where none is stated"),
    "measured": (_sizes, f"sizes in bytes by {', '.join(QUANTITIES)}"),
    "setup": (lambda v: isinstance(v, dict), "Setup fields"),
    "quality": (lambda v: v in QUALITY, f"one of {', '.join(QUALITY)}"),
    "versions": (_texts, "versions by library"),
    "differs": (
        lambda v: isinstance(v, list) and all(name in DIFFERENCES for name in v),
        f"names of {', '.join(DIFFERENCES)}",
    ),
    "development": (lambda v: isinstance(v, bool), "true or false"),
    "value_bytes": (lambda v: isinstance(v, int) and _number(v), "a size in bytes"),
    **dict.fromkeys(("step_seconds", "tokens_per_second"), (_number, "a number above 0")),
}
"""Key of a row -> whether a value is legal, and what is expected."""
NEEDED = ("id", "model", "measured", "metric", "quality", "source", "license", "versions", "note")


def lines_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line of a JSON Lines file as (where it stands, object). Raises UsageError naming the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: no JSON: {shorten(str(error))}") from None
        if not isinstance(row, dict):
            raise UsageError(f"{where}: expected an object, found {shorten(repr(row))}")
        yield where, row


def checked(
    row: Mapping[str, Any],
    where: str,
    expected: Mapping[str, tuple[Callable[[Any], bool], str]],
    needed: tuple[str, ...],
) -> Mapping[str, Any]:
    """The row, its keys and values legal. Raises UsageError naming line, key and what was expected."""
    for key in needed:
        if key not in row:
            raise UsageError(f"{where}: {key} is missing")
    for key, value in row.items():
        if key not in expected:
            close = nearest(key, expected, 1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(expected)}"
            raise UsageError(f"{where}: unknown key {shorten(repr(key))}: {hint}")
        legal, words = expected[key]
        if not legal(value):
            raise UsageError(f"{where}: {key} is {shorten(repr(value))}, expected {words}")
    return row


def read_runs(path: Path = RUNS) -> tuple[PublishedRun, ...]:
    """The published runs of a file. Raises UsageError naming file, line and key."""
    found: dict[str, PublishedRun] = {}
    for where, row in lines_of(path):
        run = _run(checked(row, where, EXPECTED, NEEDED), where)
        if run.id in found:
            raise UsageError(f"{where}: id {shorten(repr(run.id))} is that of an earlier line")
        found[run.id] = run
    return tuple(found.values())


def _run(row: Mapping[str, Any], where: str) -> PublishedRun:
    if ("setup" in row) == ("unexpressed" in row):
        raise UsageError(f"{where}: expected either setup or unexpressed (why there is no setup)")
    if not row["measured"] and "value_bytes" not in row:
        raise UsageError(f"{where}: measured is empty: expected a size, or value_bytes")
    return PublishedRun(**{**row, "differs": tuple(row.get("differs", ()))})


@cache
def published_runs() -> tuple[PublishedRun, ...]:
    """The runs that ship with the package, read once."""
    return read_runs()


@cache
def _document() -> Mapping[str, Any]:
    return tomllib.loads(TIMES.read_text(encoding="utf-8"))


@cache
def times(*methods: str) -> tuple[Times, ...]:
    """The published times that have every one of these methods, in the file's order."""
    return tuple(one for one in (Times(**table) for table in _document()["times"]) if one.has(*methods))


@cache
def figures() -> Mapping[str, PublishedRun | Figure]:
    """Every published figure by its id: the runs that have settings, then the others."""
    found: dict[str, PublishedRun | Figure] = {run.id: run for run in published_runs()}
    return found | {table["id"]: Figure(**table) for table in _document()["figures"]}
