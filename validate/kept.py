"""Results of a claims file's parts on disk, so that a second reading is quick: one JSON file in the user's
cache folder, valid for one state of memplan's sources, the installed libraries and the recorded runs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from memplan.profiler.localized_message import LocalizedMessage
from memplan.validate.claimsfile import Part
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.sweep import Boundary, PartResult

SCHEMA = "memplan.kept/2"
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "numpy")
PACKAGES = ("planner", "profiler", "validate")
MOST_BYTES = 64 * 2**20


@dataclass
class Kept:
    """Results by the hash of their part. `state`: what they were found with; another state's are not read."""

    path: Path | None
    state: str
    results: dict[str, Any] = field(default_factory=dict)
    changed: bool = False

    def find(self, part: Part) -> PartResult | None:
        """The result that was kept for a part; None where there is none."""
        found = self.results.get(_key(part))
        if found is None:
            return None
        boundaries = tuple(
            Boundary(**{**b, "yes": tuple(b["yes"]), "no": tuple(b["no"])}) for b in found["boundaries"]
        )
        spread = None if found["spread"] is None else tuple(found["spread"])
        evidence = _message(found["evidence"])
        return PartResult(part, found["verdict"], found["found"], evidence, boundaries, spread)  # type: ignore[arg-type]

    def keep(self, part: Part, result: PartResult) -> None:
        """Keep a result; what no JSON can hold is found anew each time."""
        with suppress(TypeError, ValueError):
            entry = {
                "verdict": result.verdict,
                "found": result.found,
                "evidence": _plain(result.evidence),
                "spread": result.spread,
                "boundaries": [{f.name: getattr(b, f.name) for f in fields(b)} for b in result.boundaries],
            }
            json.dumps(entry)
            self.results[_key(part)] = entry
            self.changed = True

    def write(self) -> None:
        """Write the results, whole or not at all; a folder that cannot be written to keeps nothing."""
        if self.path is None or not self.changed:
            return
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            document = {"schema": SCHEMA, "state": self.state, "results": self.results}
            partial.write_text(json.dumps(document), encoding="utf-8")
            partial.replace(self.path)


def open_kept(context: EvaluationContext, models: Mapping[str, Any], folder: Path | None = None) -> Kept:
    """What was kept for this state in a folder, by default the user's; empty where nothing was, or where no
    cache folder is known.
    """
    state = _state(context, models)
    if folder is None:
        try:
            from platformdirs import user_cache_path
        except ImportError:
            return Kept(None, state)
        folder = Path(user_cache_path("memplan"))
    path = folder / "claims" / f"{state[:20]}.json"
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        if path.stat().st_size <= MOST_BYTES:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["schema"] == SCHEMA and document["state"] == state:
                return Kept(path, state, dict(document["results"]))
    return Kept(path, state)


def _state(context: EvaluationContext, models: Mapping[str, Any]) -> str:
    """A hash of all that a result rests on beside its part."""
    found = hashlib.sha256(json.dumps([SCHEMA, models], sort_keys=True, default=repr).encode())
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found.update(f"{name} {metadata.version(name)}".encode())
    for record in context.records:
        found.update(repr(record).encode())
    home = Path(__file__).parent.parent  # the packages stand beside this one, in a clone and in a wheel
    for package in PACKAGES:
        for path in sorted((home / package).resolve().rglob("*")):
            if path.suffix in (".py", ".toml", ".json"):
                found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def _key(part: Part) -> str:
    plain = {f.name: getattr(part, f.name) for f in fields(part) if f.name != "place"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=repr).encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    """A message as JSON: a sentence is {template, values}, several are {list}."""
    if isinstance(value, LocalizedMessage):
        return {"template": value.template, "values": {k: _plain(v) for k, v in value.values.items()}}
    if isinstance(value, tuple):
        return {"list": [_plain(one) for one in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"no JSON: {type(value).__name__}")


def _message(value: Any) -> Any:
    if isinstance(value, dict) and "template" in value:
        return LocalizedMessage(value["template"], {k: _message(v) for k, v in value["values"].items()})
    return tuple(_message(one) for one in value["list"]) if isinstance(value, dict) else value
