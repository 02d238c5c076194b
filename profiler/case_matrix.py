"""A campaign file: YAML of cases and grids -> Case, each fully resolved before anything runs.

    name: h200
    device: cuda                       what the cases run on (cuda, cpu, dry), unless --device says otherwise
    steps: 3                           measured steps of each case, after two of warm-up
    deadline: 150s                     of each case
    models: {small: {model_type: ...}} shapes given inline; other names are found as everywhere
    defaults: {recipe: raw}            Setup fields of every case
    cases:
      - {model: llama-7b, method: qlora, cap: 24GiB}
      - {model: llama-7b, method: lora, boundary: true}      the smallest cap that it survives, by bisection
      - grid: {model: [a, b], method: [full, lora], shape: [{micro_batch: 1}, {micro_batch: 4}]}
        skip: [{model: b, method: full}]
        rank: 8

A grid's values that are mappings are merged into the case, so that fields can move together.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memplan.planner.inputs.setup import FIELDS, Setup, resolve
from memplan.planner.tables.dtypes import FLOATS
from memplan.planner.tables.errors import UsageError, shorten, shown, unknown
from memplan.planner.tables.units import parse_size

TOP = ("schema", "name", "device", "steps", "deadline", "models", "defaults", "cases")
OWN = ("model", "cap", "boundary", "steps", "deadline", "name", "grid", "skip")
DEVICES = {"cuda": "cuda", "cpu": "cpu", "dry": "cuda"}
"""Where a campaign runs -> the device of its setups: a dry run is of CUDA's."""
CAMPAIGN_SCHEMA = "memplan.campaign/1"
STEPS, DEADLINE = 3, 150.0
MOST_CASES = 2_000
"""Cases of a campaign: at ten seconds each, six hours."""
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(s|m|h)", re.IGNORECASE)
_SHORT = {"rank": "r"}


@dataclass(frozen=True, slots=True)
class Case:
    """One case of a campaign: what to build, how to train it, and under which limits."""

    name: str
    model: str
    config: Mapping[str, Any]
    setup: Setup
    steps: int = STEPS
    cap_bytes: int | None = None
    deadline: float = DEADLINE
    snapshot: str | None = None  # where torch's memory snapshot goes
    boundary: bool = False  # look for the smallest cap that survives


@dataclass(frozen=True, slots=True)
class CaseList:
    """A campaign file, resolved."""

    name: str
    device: str
    cases: tuple[Case, ...]


def parse_duration(text: str) -> float:
    """Seconds of a duration that a person typed, such as 25m, 570s or 1h. Raises UsageError."""
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match.group(1)) * {"s": 1, "m": 60, "h": 3600}[match.group(2).lower()] if match else 0.0
    if not 0 < seconds < 10**7:
        raise UsageError(
            f"'{shorten(text)}' is not a duration: expected a number and a unit, such as 25m or 570s"
        )
    return seconds


def read(path: Path, device: str | None = None) -> CaseList:
    """The cases of a campaign file. Raises UsageError naming the file, the case and the key."""
    from memplan.planner.importers.document import parse, read_text

    if not os.path.lexists(path):
        raise UsageError(f"{path} does not exist")
    document = parse(read_text(path), path.name)
    try:
        return expand(document, path.stem, device)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def expand(document: Any, name: str, device: str | None = None) -> CaseList:
    """The cases of a campaign document, grids multiplied out, in the file's order; equal cases are kept
    once.
    """
    if not isinstance(document, Mapping):
        raise UsageError(f"a campaign is a mapping with a list of cases, found {type(document).__name__}")
    _only(document, TOP, "key")
    if document.get("schema", CAMPAIGN_SCHEMA) != CAMPAIGN_SCHEMA:
        raise UsageError(f"schema is {shown(document['schema'])}, expected {CAMPAIGN_SCHEMA}")
    where = device or document.get("device", "cuda")
    if not isinstance(where, str) or where not in DEVICES:
        raise unknown("device", where, DEVICES)
    models = _mapping(document, "models")
    defaults = {"load": "random", "device": DEVICES[where], **_mapping(document, "defaults")}
    _only(defaults, FIELDS, "setting in defaults")
    entries = document.get("cases")
    if not isinstance(entries, list) or not entries:
        raise UsageError("cases is missing or empty: expected a list of mappings")
    shared = {key: document[key] for key in ("steps", "deadline") if key in document}
    cases: dict[tuple[Any, ...], Case] = {}
    for number, entry in enumerate(entries, 1):
        try:
            for fields in _multiply(entry):
                case = _case({**shared, **fields}, defaults, models)
                if len(cases) >= MOST_CASES:
                    raise UsageError(f"a campaign has at most {MOST_CASES:,} cases: split this one")
                cases.setdefault(
                    (case.model, case.setup.identity(), case.steps, case.cap_bytes, case.boundary), case
                )
        except UsageError as error:
            raise UsageError(f"case {number}: {error}") from None
    return CaseList(str(document.get("name", name)), where, tuple(cases.values()))


def _grid(entry: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The axes of a grid, each with its values; UsageError where they are none."""
    grid = _mapping(entry, "grid")
    for axis, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"grid.{axis} is {shown(values)}, expected a list of values")
        if not all(isinstance(value, Mapping) for value in values):
            _only({axis: None}, (*OWN[:-2], *FIELDS), "grid axis")
    return dict(grid)


def _skips(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The points of the grid to leave out; UsageError where they are no mappings."""
    skips = entry.get("skip") or []
    if not isinstance(skips, list) or not all(isinstance(skip, Mapping) for skip in skips):
        raise UsageError(f"skip is {shown(skips)}, expected a list of mappings")
    return skips


def _multiply(entry: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(entry, Mapping):
        raise UsageError(f"{shown(entry)} is not a mapping of settings")
    _only(entry, (*OWN, *FIELDS), "key")
    fixed = {key: value for key, value in entry.items() if key not in ("grid", "skip")}
    grid, skips = _grid(entry), _skips(entry)
    size = math.prod(len(values) for values in grid.values())
    if size > MOST_CASES:
        raise UsageError(f"the grid has {shown(size)} cases: expected at most {MOST_CASES:,}")
    for point in itertools.product(*grid.values()):
        fields = dict(fixed)
        for axis, value in zip(grid, point, strict=True):
            fields.update(value if isinstance(value, Mapping) else {axis: value})
        _only(fields, (*OWN[:-2], *FIELDS), "key")
        if not any(all(fields.get(key) == value for key, value in skip.items()) for skip in skips):
            yield fields


def _case(fields: dict[str, Any], defaults: Mapping[str, Any], models: Mapping[str, Any]) -> Case:
    model = fields.get("model")
    if not isinstance(model, str):
        raise UsageError(f"model is {shown(model)}, expected a name")
    config, positions = _model(model, models)
    said = {key: value for key, value in fields.items() if key not in OWN}
    setup = resolve({**defaults, **said}, max_positions=positions)
    steps = fields.get("steps", STEPS)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 1000:
        raise UsageError(f"steps is {shown(steps)}, expected a whole number from 1 to 1000")
    cap, deadline, boundary = fields.get("cap"), fields.get("deadline"), fields.get("boundary", False)
    if not isinstance(boundary, bool):
        raise UsageError(f"boundary is {shown(boundary)}, expected true or false")
    if boundary and (cap is not None or setup.device == "cpu"):
        raise UsageError(
            "boundary looks for a cap of the CUDA allocator: it goes with neither a cap nor the CPU"
        )
    cap_bytes = parse_size(str(cap)) if cap is not None else None
    seconds = parse_duration(str(deadline)) if deadline is not None else DEADLINE
    name = (
        str(fields["name"])
        if "name" in fields
        else label(model, setup, said, cap) + (" boundary" if boundary else "")
    )
    return Case(name, model, config, setup, steps, cap_bytes, seconds, boundary=boundary)


def label(model: str, setup: Setup, said: Mapping[str, Any], cap: Any = None) -> str:
    """A short name that tells a case from its neighbors: model, method, shape, and every other choice that
    was made.
    """
    parts = [model, setup.method, f"b{setup.micro_batch}", f"s{setup.sequence_length}"]
    for key, value in said.items():
        if key in ("method", "micro_batch", "sequence_length", "device", "gpu", "load", "adapter"):
            continue
        if isinstance(value, bool):
            parts.append(key if value else f"no-{key}")
        elif isinstance(value, (list, tuple)):
            parts.append("+".join(map(str, value)))
        elif isinstance(value, str) and value != "none" and (key == "weight_dtype" or value not in FLOATS):
            parts.append(value)
        else:
            parts.append(f"{_SHORT.get(key, f'{key}-')}{value}")
    return " ".join([*parts, *([f"cap-{cap}"] if cap is not None else [])])


def _model(name: str, models: Mapping[str, Any]) -> tuple[Mapping[str, Any], int | None]:
    """A model's config.json and the count of its learned positions (None where they are computed, or the
    formula has no rule).
    """
    from memplan.planner.inputs.models import find

    given = models.get(name)
    if given is not None and not isinstance(given, Mapping):
        raise UsageError(f"models.{name} is {shown(given)}, expected the mapping of a config.json")
    model = find(given if given is not None else name)
    try:
        positions = model.spec().max_positions
    except UsageError:  # no rule in the formula: the trace engine and the real library decide
        positions = None
    return dict(model.config), positions


def _only(mapping: Mapping[str, Any], legal: tuple[str, ...], kind: str) -> None:
    for key in mapping:
        if key not in legal:
            raise unknown(kind, key, legal)


def _mapping(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key) or {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{key} is {shown(value)}, expected a mapping")
    return dict(value)
