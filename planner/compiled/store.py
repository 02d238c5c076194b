"""Compiled traces on disk: one compressed JSON file each in the user's cache folder, named by all that
decides it, the installed libraries and memplan's own sources among them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from memplan.planner import __version__
from memplan.planner.compiled.nodes import Grid
from memplan.planner.compiled.program import Program
from memplan.planner.compiled.regime import Regime
from memplan.planner.inputs.setup import Setup
from memplan.planner.trace.device.target import Target
from memplan.planner.trace.events.log import Mark, Storage
from memplan.planner.trace.events.record import Facts

SCHEMA = "memplan.compiled/3"
MOST_FILES = 400
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl")
_MOVES_NOTHING = ("micro_batch", "sequence_length", "gpu", "allocator", "torch")
"""Setup fields that are arguments of a program, or of the allocator that it is replayed through."""
_TEXT = ("op", "module", "dtype", "moment", "via", "component", "name", "stream")
_PLAIN = ("layer", "saved", "held", "reach")


def folder() -> Path:
    """Where they are kept."""
    from platformdirs import user_cache_path

    return Path(user_cache_path("memplan")) / "compiled"


def key(config: Mapping[str, Any], setup: Setup, target: Target, regime: Regime) -> str:
    """A hash of all that decides a program. Values that are no JSON are told apart by how they print."""
    decides = {
        "config": config,
        "setup": {name: value for name, value in setup.values().items() if name not in _MOVES_NOTHING},
        "target": [target.device, target.capability, target.sms, target.torch],
        "regime": asdict(regime),
        "versions": _versions(),
    }
    text = json.dumps(decides, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


@cache
def _versions() -> dict[str, str]:
    found = {"memplan": __version__, "schema": SCHEMA}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    sources = hashlib.sha256()
    planner = Path(__file__).parents[1]
    for path in sorted(planner / part for part in ("tables", "inputs", "run", "trace", "compiled")):
        for file in sorted(path.rglob("*.py")):
            sources.update(file.read_bytes())
    return {**found, "sources": sources.hexdigest()}


def load(name: str) -> Program | None:
    """The program kept under a key; None where there is none, or it cannot be read."""
    path = folder() / f"{name}.json.gz"
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found = _read(json.load(file))
        os.utime(path)
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError):
        return None
    return found


def save(name: str, program: Program) -> None:
    """Keep a program; a folder that cannot be written keeps none. The files used longest ago go."""
    path = folder() / f"{name}.json.gz"
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(beside, "wt", encoding="utf-8", compresslevel=3) as file:
            file.write(json.dumps(_document(program), separators=(",", ":")))  # `dump` is not the C encoder
        os.replace(beside, path)
        kept = sorted(path.parent.glob("*.json.gz"), key=lambda each: each.stat().st_mtime)
        for old in kept[:-MOST_FILES]:
            old.unlink(missing_ok=True)
    except OSError:
        with suppress(OSError):
            beside.unlink()


def _document(program: Program) -> dict[str, Any]:
    words: dict[str, int] = {}
    return {
        "schema": SCHEMA,
        "grid": [program.grid.batches, program.grid.sequences],
        "events": program.events,
        "text": {
            name: [words.setdefault(getattr(each, name), len(words)) for each in program.storages]
            for name in _TEXT
        },
        "plain": {name: [getattr(each, name) for each in program.storages] for name in _PLAIN},
        "words": list(words),
        "size_of": program.size_of,
        "shape_of": program.shape_of,
        "sizes": program.sizes,
        "shapes": program.shapes,
        "marks": [[mark.step, mark.moment, mark.begin, mark.end] for mark in program.marks],
        "calls": [[storage, *key] for storage, key in program.calls.items()],
        "templates": program.templates,
        "numbers": program.numbers,
        "facts": asdict(program.facts),
        "host": program.host,
    }


def _read(document: Mapping[str, Any]) -> Program:
    if document["schema"] != SCHEMA:
        raise ValueError(document["schema"])
    words, text, plain = document["words"], document["text"], document["plain"]
    columns = {name: [words[each] for each in text[name]] for name in _TEXT} | {
        name: plain[name] for name in _PLAIN
    }
    sizes = tuple(tuple(each) for each in document["sizes"])
    shapes = _tuples(document["shapes"])
    names = tuple(columns)
    storages = tuple(
        Storage(
            id=number,
            nbytes=sizes[size][0],
            shape=shapes[shape][0],
            born=0,
            **dict(zip(names, row, strict=True)),
        )
        for number, (size, shape, *row) in enumerate(
            zip(document["size_of"], document["shape_of"], *columns.values(), strict=True)
        )
    )
    facts = {field.name: document["facts"][field.name] for field in fields(Facts)}
    return Program(
        Grid(*(tuple(each) for each in document["grid"])),
        tuple(document["events"]),
        storages,
        tuple(document["size_of"]),
        tuple(document["shape_of"]),
        sizes,
        shapes,
        {storage: (template, numbers) for storage, template, numbers in document["calls"]},
        _tuples(document["templates"]),
        _tuples(document["numbers"]),
        tuple(Mark(*mark) for mark in document["marks"]),
        Facts(**{**facts, "warnings": tuple(facts["warnings"])}),
        tuple(document["host"]),
    )


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, however deep."""
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value
