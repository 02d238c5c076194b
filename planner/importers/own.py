"""memplan's own files: a Setup as YAML or JSON with a `model` beside it, or a prediction's or measurement's
document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.planner.importers.rules import Facts, KeyReport, Rule, text, use, walk
from memplan.planner.inputs.setup import FIELDS

RULES: dict[str, Rule] = {"model": use("_model", text), **{name: use(name) for name in FIELDS}}
DOCUMENTS = ("memplan.prediction/1", "memplan.measurement/1")


def recognize(document: Mapping[str, Any]) -> bool:
    """A document of ours, or a mapping of Setup fields: a model and at least one field, or at least two
    fields.
    """
    if document.get("schema") in DOCUMENTS:
        return isinstance(document.get("setup"), Mapping)
    fields = sum(key in FIELDS for key in document)
    return fields > 0 and fields + ("model" in document) >= 2 and all(key in RULES for key in document)


def read(document: Mapping[str, Any], _walk: Any = walk) -> tuple[Facts, list[KeyReport], list[str]]:
    """Facts of a setup file; of a document its setup and its model's name, every other key left alone."""
    if document.get("schema") not in DOCUMENTS:
        return _walk(RULES, document)  # type: ignore[no-any-return]
    facts, reports, warnings = _walk(
        RULES, {key: value for key, value in document["setup"].items() if key in RULES}
    )
    model = document.get("model")
    name = model.get("name") if isinstance(model, Mapping) else None
    facts["_model"] = name if isinstance(name, str) else None
    return facts, reports, warnings


def finish(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    """The Setup fields among the facts, without those that importers keep for themselves."""
    return {key: value for key, value in facts.items() if not key.startswith("_")}
