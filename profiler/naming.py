"""The names of records: the hash of what decides their numbers, file and folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.defaults import BASE

_BASE = json.loads(json.dumps(BASE))


def identity_of(
    config: Any, setup: Setup, cap_bytes: int | None, steps: int, environment: Mapping[str, Any]
) -> str:
    """The hash of model, setup, cap, steps, GPU and library versions that names a case."""
    fields = setup.to_document().items()
    what = {
        "model": config,
        "setup": {
            key: value for key, value in fields if key != "torch" and value != _BASE.get(key)
        },  # so that a field added later keeps old identities; torch's version is among the versions
        "cap": cap_bytes,
        "steps": steps,
        "gpu": environment.get("gpu"),
        "versions": dict(environment.get("versions") or {}),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def slug(text: str) -> str:
    """Text as a file name: lower case, digits and hyphens."""
    return re.sub(r"[^a-z0-9.+]+", "-", text.lower()).strip("-.")[:96] or "case"


def file_name(case: str, identity: str) -> str:
    """The name of a record's file: the case in words and the beginning of its identity."""
    return f"{slug(case)}-{identity[:8]}.json"


def folder_of(environment: Mapping[str, Any]) -> str:
    """The folder under measurements/ of an environment: the GPU by its short name, or cpu; a dry run's apart
    from those of GPUs.
    """
    gpu = gpu_name(environment) or "cpu"
    return f"dry-{gpu}" if is_dry(environment) else gpu


def gpu_name(environment: Mapping[str, Any]) -> str | None:
    """The short name of an environment's GPU, or of the one that a dry run played; None on a CPU."""
    gpu = str(environment.get("gpu") or "").removesuffix("(stub)").lower()
    return slug(re.sub(r"\b(nvidia|tesla|geforce|graphics|generation)\b", " ", gpu)) if gpu else None


def is_dry(environment: Mapping[str, Any]) -> bool:
    """Whether an environment is that of a dry run: its driver is the stub."""
    return environment.get("driver") == "stub"
