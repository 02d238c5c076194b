"""Claims as data: the types, and the reader of a claims file (TOML) whose errors name the file, the line, the
key and the value.

A file holds `[[claim]]` tables, each with `[[claim.part]]` tables; `[models.NAME]` tables describe models
that the catalog lacks. A part without `case` must hold for the claim to be true; parts with a `case` are
alternative readings of what the text leaves open. `decides = false` marks a part that only informs. Nothing
in a file is executed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memplan.planner.inputs.jsonfile import DEEPEST, MOST_BYTES, check_values
from memplan.planner.inputs.textfile import read_text
from memplan.planner.tables.errors import UsageError, nearest, shorten, shown
from memplan.planner.tables.units import SIZES
from memplan.validate.place import Place

SCHEMA = "memplan.claimsfile/1"
Claimed = int | float | bool | str | tuple[float, float]
RELATIONS = ("=", "<", "<=", ">", ">=", "between")

UNITS: dict[str, float] = {
    "": 1,
    "x": 1,
    "%": 0.01,
    "parameters": 1,
    **SIZES,
    "bits": 0.125,
    "B/parameter": 1,
    "bits/parameter": 0.125,
    "tokens": 1,
    "GPUs": 1,
    "cards": 1,
}
"""What a found number is divided by before it is compared: bytes, counts and fractions are computed plain."""


@dataclass(frozen=True)
class Source:
    """Where a claim stands: the document, and the few original words that carry it."""

    document: str
    quote: str


@dataclass(frozen=True)
class Over:
    """What a part leaves open: `key` runs over integers from low to high (bisected, as far as `explore`), or
    over values.
    """

    key: str
    low: int = 0
    high: int = 0
    values: tuple[Any, ...] = ()
    explore: int = 0


@dataclass(frozen=True)
class Part:
    """One thing that must hold: a check kind with its parameters, and what the text claims of it."""

    what: str
    check: str
    claimed: Claimed
    zh: str = ""
    relation: str = "="
    tolerance: float = 0.0
    unit: str = ""
    case: str = ""
    case_zh: str = ""
    decides: bool = True
    tell: bool = False  # told beside the verdict though it does not decide
    chosen: bool = False  # the threshold is memplan's, not the text's: the output says where it would turn
    over: Over | None = None
    engine: str = ""
    model: str = ""
    gpu: str = ""
    setup: Mapping[str, Any] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)  # what the check kind alone reads
    place: Place | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Claim:
    """One claim: its interpretation, where documents state it, and the parts that decide it."""

    id: str
    reading: str
    sources: tuple[Source, ...]
    parts: tuple[Part, ...]
    zh: str = ""


@dataclass(frozen=True)
class Side:
    """One document's word in a conflict: what it claims of the conflict's check."""

    document: str
    quote: str
    claimed: Claimed
    relation: str = "="
    tolerance: float = 0.0


@dataclass(frozen=True)
class Conflict:
    """Two or more documents (or one with itself) on one question, and the check that arbitrates."""

    id: str
    about: str
    arbiter: Part
    sides: tuple[Side, ...]
    zh: str = ""


@dataclass(frozen=True)
class ClaimsFile:
    """A parsed claims file: claims, conflicts, and models that the catalog lacks."""

    path: str
    claims: tuple[Claim, ...]
    conflicts: tuple[Conflict, ...]
    models: Mapping[str, Mapping[str, Any]]


_TEXT, _NUMBER, _FLAG, _TABLE, _LIST = (str,), (int, float), (bool,), (dict,), (list,)
_ANY = (str, int, float, bool, list)
_TOP = {"schema": _TEXT, "models": _TABLE, "claim": _LIST, "conflict": _LIST}
_CLAIM = {"id": _TEXT, "reading": _TEXT, "zh": _TEXT, "sources": _LIST, "part": _LIST}
_CONFLICT = {"id": _TEXT, "about": _TEXT, "zh": _TEXT, "arbiter": _TABLE, "sides": _LIST}
_SOURCE = {"document": _TEXT, "quote": _TEXT}
_SIDE = {**_SOURCE, "claimed": _ANY, "relation": _TEXT, "tolerance": _NUMBER}
_OVER = {"key": _TEXT, "range": _LIST, "values": _LIST, "explore": (int,)}
_PART: dict[str, tuple[type, ...]] = {
    "what": _TEXT,
    "zh": _TEXT,
    "check": _TEXT,
    "claimed": _ANY,
    "relation": _TEXT,
    "tolerance": _NUMBER,
    "unit": (str, list),
    "case": _TEXT,
    "case_zh": _TEXT,
    "decides": _FLAG,
    "tell": _FLAG,
    "chosen": _FLAG,
    "over": _TABLE,
    "engine": _TEXT,
    "model": _TEXT,
    "gpu": _TEXT,
    "setup": _TABLE,
}


Kinds = Mapping[str, tuple[Mapping[str, tuple[type, ...]], tuple[str, ...]]]
"""Each check kind: the parameters that it reads, with their types, and those that it needs."""


def read_claims(path: str | Path, kinds: Kinds) -> ClaimsFile:
    """The claims of a TOML file. Raises UsageError with file, line and key."""
    try:
        text = read_text(Path(path), MOST_BYTES)
    except UsageError as error:
        raise UsageError(f"{path}: cannot be read as a claims file: {error}") from None
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise UsageError(f"{path}: nested more than {DEEPEST} levels deep") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    except ValueError:  # an integer that Python does not read
        raise UsageError(f"{path}: not valid TOML: a number of thousands of digits") from None
    check_values(document, str(path))
    place = Place(str(path), tuple(text.splitlines()))
    _keys(document, _TOP, place)
    schema = document.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise place.error("schema", f"'{shorten(schema)}' is not {SCHEMA}: this version reads no other")
    claims = tuple(
        _claim(table, place.inside("claim", n), kinds) for n, table in enumerate(document.get("claim", ()))
    )
    if not claims:
        raise place.error("claim", "the file holds no [[claim]] table")
    seen: set[str] = set()
    for n, claim in enumerate(claims):
        if claim.id in seen:
            raise place.inside("claim", n).error("id", f"'{shorten(claim.id)}' is used twice")
        seen.add(claim.id)
    conflicts = tuple(
        _conflict(table, place.inside("conflict", n), kinds)
        for n, table in enumerate(document.get("conflict", ()))
    )
    return ClaimsFile(str(path), claims, conflicts, document.get("models", {}))


def _keys(
    table: Any, legal: Mapping[str, tuple[type, ...]], place: Place, needed: tuple[str, ...] = ()
) -> None:
    if not isinstance(table, dict):
        raise UsageError(f"{place.path}, line {place.line('')}: expected a table, found {shown(table)}")
    for key, value in table.items():
        if key not in legal:
            close = nearest(key, legal)
            raise place.error(
                key,
                "unknown key: "
                f"{'did you mean ' + ' or '.join(close) if close else 'expected ' + ', '.join(legal)}?",
            )
        if not isinstance(value, legal[key]) or (isinstance(value, bool) and bool not in legal[key]):
            wanted = " or ".join(t.__name__ for t in legal[key])
            raise place.error(key, f"{shown(value)} is of type {type(value).__name__}, expected {wanted}")
    for key in needed:
        if key not in table:
            raise place.error(key, "is missing here")


def _claim(table: Any, place: Place, kinds: Kinds) -> Claim:
    _keys(table, _CLAIM, place, ("id", "reading", "part"))
    sources = []
    for source in table.get("sources", ()):
        _keys(source, _SOURCE, place, ("document", "quote"))
        sources.append(Source(**source))
    parts = tuple(
        p for n, part in enumerate(table["part"]) for p in _parts(part, place.inside("part", n), kinds)
    )
    if not parts:
        raise place.error("part", "a claim needs at least one part")
    return Claim(table["id"], table["reading"], tuple(sources), parts, table.get("zh", ""))


def _conflict(table: Any, place: Place, kinds: Kinds) -> Conflict:
    _keys(table, _CONFLICT, place, ("id", "about", "arbiter", "sides"))
    sides = []
    for side in table["sides"]:
        _keys(side, _SIDE, place, ("document", "quote", "claimed"))
        sides.append(
            Side(**{**side, "claimed": _claimed(side["claimed"], side.get("relation", "="), place, "sides")})
        )
    arbiter = {"what": table["about"], "claimed": True, **table["arbiter"]}
    return Conflict(
        table["id"],
        table["about"],
        _parts(arbiter, place, kinds, loose=True)[0],
        tuple(sides),
        table.get("zh", ""),
    )


def _check_units(units: list[Any], place: Place) -> None:
    known = ", ".join(unit for unit in UNITS if unit)
    if not units:
        raise place.error("unit", f"is an empty list: expected one or more of {known}")
    for unit in units:
        if not isinstance(unit, str) or unit not in UNITS:
            raise place.error("unit", f"{shown(unit)} is not a unit: expected one of {known}")


def _parts(table: Any, place: Place, kinds: Kinds, loose: bool = False) -> tuple[Part, ...]:
    """The parts of one table: one, or one a unit where the text leaves the unit open (`unit` is a list)."""
    kind = table.get("check") if isinstance(table, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise place.error(
            "check", f"{shown(kind)} is not a check kind: expected one of {', '.join(sorted(kinds))}"
        )
    reads, needs = kinds[kind]
    _keys(table, {**_PART, **reads}, place, ("what", "claimed", *needs))
    relation = table.get("relation", "=")
    if relation not in RELATIONS:
        raise place.error(
            "relation", f"'{shorten(relation)}' is not a relation: expected one of {' '.join(RELATIONS)}"
        )
    units = table.get("unit", "")
    _check_units(units if isinstance(units, list) else [units], place)
    plain = ["what", "zh", "check", "decides", "tell", "chosen", "engine", "model", "gpu", "setup", "case", "case_zh"]
    shared = {key: table[key] for key in plain if key in table}
    shared |= {
        "relation": relation,
        "tolerance": float(table.get("tolerance", 0.0)),
        "over": _over(table.get("over"), place),
    }
    shared["place"] = place
    shared["claimed"] = True if loose else _claimed(table["claimed"], relation, place, "claimed")
    args = {key: table[key] for key in reads if key in table}
    if isinstance(units, list):
        return tuple(
            Part(
                **{**shared, "case": " ".join(filter(None, (shared.get("case"), f"in {unit}")))},
                unit=unit,
                args=args,
            )
            for unit in units
        )
    return (Part(**shared, unit=units, args=args),)


def _claimed(value: Any, relation: str, place: Place, key: str) -> Claimed:
    if relation == "between":
        if not (
            isinstance(value, list)
            and len(value) == 2
            and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        ):
            raise place.error(key, f"{shown(value)}: relation 'between' needs two numbers, lowest first")
        return float(value[0]), float(value[1])
    if isinstance(value, list):
        raise place.error(key, f'{shown(value)}: a list needs relation = "between"')
    if relation != "=" and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise place.error(key, f"{shown(value)}: relation '{relation}' needs a number")
    return value  # type: ignore[no-any-return]


def _over(table: Any, place: Place) -> Over | None:
    if table is None:
        return None
    _keys(table, _OVER, place, ("key",))
    if ("range" in table) == ("values" in table):
        raise place.error("over", "needs either range = [low, high] or values = [...]")
    if "values" in table:
        return Over(table["key"], values=tuple(table["values"]))
    bounds = table["range"]
    if len(bounds) != 2 or not all(type(b) is int for b in bounds) or not 0 < bounds[0] < bounds[1]:
        raise place.error("over", f"range {shown(bounds)}: expected two integers, 0 < low < high")
    return Over(table["key"], bounds[0], bounds[1], explore=table.get("explore", 0))
