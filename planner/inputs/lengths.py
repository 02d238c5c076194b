"""The lengths of a dataset's examples in tokens: a file of them, or a law through mean, 95th percentile and
maximum.

A law stated as mean:p95:max is a log-normal one, rounded up and cut off at the maximum, as a loader cuts off
what is too long: P(length <= n) = P(X <= n) below the maximum, with ln X normal, where the middle and the
deviation of ln X make the mean (of what is cut off) and the 95th percentile what was stated. A file says what
the lengths are.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from memplan.planner.inputs.jsonfile import parse_json, whole
from memplan.planner.inputs.textfile import read_text
from memplan.planner.tables.errors import UsageError, shorten, shown

MOST = 2**24  # tokens of an example
MOST_BYTES = 2 * 10**8
COLUMNS = ("length", "input_ids")
"""What a row's length is read from: transformers 5.24 training_args.py length_column_name, or the tokens."""
NORMAL_P95 = 1.6448536269514722  # deviations from the middle of a normal law to its 95th percentile
LEAST, WIDEST = 1e-4, 6.0
"""Between which deviations of ln X a law is looked for."""
LONGEST_LAW = 2**20
STEPS = 80  # halvings of an interval: more than a double has digits


@dataclass(frozen=True)
class Lengths:
    """`values` ascending; `cumulative[i]`: how many examples are at most `values[i]` long, of `total`; of a
    law their share, of 1. `examples`: how many there are, None for a law.
    """

    source: str
    values: tuple[int, ...]
    cumulative: tuple[float, ...]
    examples: int | None
    law: str = ""

    @property
    def total(self) -> float:
        """All examples, or 1."""
        return self.cumulative[-1]

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return self.values[-1]

    def up_to(self, length: int) -> float:
        """How many examples (of a law: which share of them) are at most so long."""
        place = bisect_right(self.values, length)
        return self.cumulative[place - 1] if place else 0

    def quantile(self, share: float) -> int:
        """The smallest length that so large a share of the examples does not exceed."""
        wanted = share * self.total * (1 - 1e-12)
        return self.values[min(bisect_left(self.cumulative, wanted), len(self.values) - 1)]

    @cached_property
    def mean(self) -> float:
        """Tokens of an example, on average."""
        return self.mean_up_to(self.longest)

    def mean_up_to(self, limit: int) -> float:
        """The same where examples are cut off at `limit` tokens."""
        before, found = 0.0, 0.0
        for value, cumulated in zip(self.values, self.cumulative, strict=True):
            found += min(value, limit) * (cumulated - before)
            before = cumulated
        return found / self.total


def read_lengths(text: str) -> Lengths:
    """The lengths that `--lengths` names. Raises UsageError for a triple that no lengths can have, and for a
    file that holds none.
    """
    parts = text.split(":")
    if len(parts) == 3 and all(_number(part) is not None for part in parts):
        return through(*(float(part) for part in parts))
    return _counted(text, _read(Path(os.path.expanduser(text))))


def of(lengths: Iterable[int], source: str = "lengths") -> Lengths:
    """Lengths one by one."""
    return _counted(source, Counter(lengths))


def _counted(source: str, counts: Counter[int]) -> Lengths:
    if not counts:
        raise UsageError(
            f"--lengths '{shorten(source)}' holds no length: expected one number a line, rows with a "
            f'column {" or ".join(COLUMNS)}, or a histogram such as {{"512": 10}}'
        )
    values = tuple(sorted(counts))
    cumulative = tuple(accumulate(counts[value] for value in values))
    return Lengths(source, values, cumulative, cumulative[-1])


# ---- files -------------------------------------------------------------------------------------------------


def _read(path: Path) -> Counter[int]:
    if not os.path.exists(path):
        raise UsageError(
            f"--lengths '{shorten(str(path))}': expected mean:p95:max, such as 512:1800:4096, or a file, and "
            "there is none of that name"
        )
    name, text = shorten(str(path)), read_text(path, MOST_BYTES)
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        kind = _rows if text.lstrip().startswith("{") else _plain
    return Counter(kind(text, name))


def _plain(text: str, name: str) -> Iterator[int]:
    """One length a line."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _length(_number(line), f"'{name}' line {number}", line.strip())


def _rows(text: str, name: str) -> Iterator[int]:
    """JSON Lines: an object with a column of COLUMNS, a number, or a list of tokens."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        place = f"'{name}' line {number}"
        try:
            row = json.loads(line, parse_int=whole)
        except json.JSONDecodeError as error:
            raise UsageError(f"{place} is not JSON: {error.msg}") from None
        except RecursionError:
            raise UsageError(f"{place} is nested too deep to be a row") from None
        yield _of_row(row, place)


def _of_row(row: Any, place: str) -> int:
    if isinstance(row, dict):
        column = next((key for key in COLUMNS if key in row), None)
        if column is None:
            raise UsageError(
                f"{place} has no column {' or '.join(COLUMNS)}: its columns are "
                f"{shorten(', '.join(map(str, row)) or 'none')}"
            )
        place, row = f"{place} {column}", row[column]
    return _length(len(row) if isinstance(row, list) else row, place, row)


def _table(text: str, name: str) -> Iterator[int]:
    """CSV with a header that has a column of COLUMNS."""
    first = text.splitlines()[0] if text.strip() else ""
    csv.field_size_limit(MOST_BYTES)  # a column of tokens is long
    reader = csv.DictReader(io.StringIO(text), delimiter="\t" if "\t" in first else ",")
    try:
        column = next((key for key in COLUMNS if key in (reader.fieldnames or ())), None)
        if column is None and _number(first) is not None:
            yield from _plain(text, name)
            return
        if column is None:
            raise UsageError(f"'{name}' has no column {' or '.join(COLUMNS)}: found {shorten(first)}")
        for row in reader:
            said = row[column] or ""
            value = said.strip(" []").replace(",", " ").split() if column == "input_ids" else None
            place = f"'{name}' line {reader.line_num} {column}"
            yield _length(len(value) if value is not None else _number(said), place, said)
    except csv.Error as error:
        raise UsageError(f"'{name}' line {reader.line_num} is no row of CSV: {error}") from None


def _histogram(text: str, name: str) -> Counter[int] | Iterator[int]:
    """A JSON object of length -> how many, or a list of lengths or rows."""
    try:
        document = parse_json(text, name, unique=True)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"'{name}' is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    if isinstance(document, list):
        return iter([_of_row(row, f"'{name}' [{place}]") for place, row in enumerate(document)])
    if not isinstance(document, dict):
        raise UsageError(f"'{name}' holds {shown(document)}: expected an object of length to count")
    found: Counter[int] = Counter()
    for key, many in document.items():
        length = _length(_number(key), f"'{name}' key", key)
        if type(many) is not int or not 0 <= many <= 10**12:
            raise UsageError(f"'{name}' {length} is {shown(many)}: expected how many examples are so long")
        if many:
            found[length] += many
    return found


_KINDS: dict[str, Callable[[str, str], Any]] = {
    ".jsonl": _rows,
    ".ndjson": _rows,
    ".csv": _table,
    ".tsv": _table,
    ".json": _histogram,
    ".txt": _plain,
}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _length(value: Any, place: str, said: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= MOST or value % 1:
        raise UsageError(f"{place} is {shown(said)}: expected a length of 1 to {MOST:,} tokens")
    return int(value)


# ---- the law -----------------------------------------------------------------------------------------------


def through(mean: float, p95: float, most: float) -> Lengths:
    """The log-normal law cut off at `most` with this mean and 95th percentile, in tokens. Raises UsageError
    where no lengths are so, and where no such law is.
    """
    said = f"--lengths {mean:g}:{p95:g}:{most:g}"
    for name, value in (("mean", mean), ("p95", p95), ("max", most)):
        if not 1 <= value <= MOST:
            raise UsageError(f"{said}: {name} is {value:g}, expected 1 to {MOST:,} tokens")
    if most % 1:
        raise UsageError(f"{said}: max is {most:g}, expected a whole number of tokens")
    if mean > p95:
        raise UsageError(
            f"{said}: the mean is more than the 95th percentile: expected mean:p95:max, ascending"
        )
    if p95 > most:
        raise UsageError(f"{said}: the 95th percentile is more than the maximum: expected mean:p95:max")
    if most > LONGEST_LAW:
        raise UsageError(f"{said}: max is more than {LONGEST_LAW:,} tokens: name a file of lengths instead")
    longest = int(most)
    if mean == p95 == most:
        return Lengths(said.split()[1], (longest,), (1.0,), None, f"every example {longest:,} tokens")
    law = _fitted(mean, p95, longest)
    if law is None:
        raise UsageError(
            f"{said}: no log-normal law cut off at {longest:,} has that mean and 95th percentile: name a "
            "file of lengths instead"
        )
    middle, deviation = law
    shares = [_normal(math.log(n), middle, deviation) for n in range(1, longest)]
    values = [n for n, share in enumerate(shares, 1) if share > 0]
    text = f"log-normal cut off at {longest:,} (of ln: mean {middle:.3f}, deviation {deviation:.3f})"
    cumulative = (*(share for share in shares if share > 0), 1.0)
    return Lengths(said.split()[1], (*values, longest), cumulative, None, text)


def _normal(value: float, middle: float, deviation: float) -> float:
    """P(Z <= value) of a normal law; accurate far below its middle."""
    return 0.5 * math.erfc((middle - value) / (deviation * math.sqrt(2)))


def _fitted(mean: float, p95: float, most: int) -> tuple[float, float] | None:
    """Middle and deviation of ln X; None where there are none. Rounding up adds half a token to a mean."""
    low = high = LEAST
    wanted = mean - 0.5
    found = _mean(p95, most, low)
    if found < wanted:
        return _middle(p95, low), low
    while found > wanted:  # the mean falls while the law widens, up to a turning point
        low, high, before = high, high * 1.1, found
        found = _mean(p95, most, high) if high < WIDEST else before
        if found >= before:
            return None
    for _ in range(STEPS):
        deviation = (low + high) / 2
        low, high = (deviation, high) if _mean(p95, most, deviation) > wanted else (low, deviation)
    return _middle(p95, low), low


def _mean(p95: float, most: int, deviation: float) -> float:
    """The mean of so wide a law with that 95th percentile, cut off."""
    middle, end = _middle(p95, deviation), math.log(most)
    below = math.exp(middle + deviation**2 / 2) * _normal(end - deviation**2, middle, deviation)
    return below + most * (1 - _normal(end, middle, deviation))


def _middle(p95: float, deviation: float) -> float:
    """The middle of ln X at which so wide a law has its 95th percentile there."""
    return math.log(p95) - NORMAL_P95 * deviation
