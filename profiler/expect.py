"""Parts of a document read with their types: what is missing or of another kind raises UsageError, naming the
key and the value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from memplan.planner.tables.errors import UsageError, shown


def expect(document: Mapping[str, Any], key: str, kinds: tuple[type, ...], required: bool = False) -> Any:
    """The value under a key if it is of one of these types, None where it is absent. Raises UsageError where
    it is of another type, or required and absent.
    """
    value = document.get(key)
    if value is None and not required:
        return None
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise UsageError(f"{key} is {shown(value)}, expected {' or '.join(kind.__name__ for kind in kinds)}")
    return value


def sequence(document: Mapping[str, Any], key: str, kinds: tuple[type, ...]) -> tuple[Any, ...]:
    """The list under a key as a tuple, its values checked; empty where it is absent."""
    values = expect(document, key, (list,)) or []
    return tuple(expect({f"{key}[{i}]": value}, f"{key}[{i}]", kinds, True) for i, value in enumerate(values))


def _check(key: str, value: Any, annotation: str) -> None:
    """That a value is what the field's annotation asks for, as far as sizes, components and texts go."""
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    if value is not None and annotation.startswith("int") and not whole:
        raise UsageError(f"{key} is {shown(value)}, expected a whole number of bytes")
    if value is not None and key.endswith(".components"):
        sizes(value, key)
    if annotation == "str" and not isinstance(value, str):
        raise UsageError(f"{key} is {shown(value)}, expected str")


def part(kind: type, document: Any, key: str) -> Any:
    """A dataclass from its document: unknown keys dropped, sizes checked to be whole numbers."""
    if document is None:
        return None
    if not isinstance(document, Mapping):
        raise UsageError(f"{key} is {shown(document)}, expected an object")
    names = {f.name: str(f.type) for f in dataclasses.fields(kind)}
    known = {name: document[name] for name in names if name in document}
    for name, value in known.items():
        _check(f"{key}.{name}", value, names[name])
    try:
        return kind(**known)
    except TypeError as error:
        raise UsageError(f"{key}: {error}") from None


def sizes(value: Any, key: str) -> None:
    """Check that a value maps names to whole numbers of bytes. Raises UsageError."""
    if not isinstance(value, Mapping):
        raise UsageError(f"{key} is {shown(value)}, expected an object")
    for name, nbytes in value.items():
        if not isinstance(nbytes, int) or isinstance(nbytes, bool) or abs(nbytes) >= 2**63:
            raise UsageError(f"{key}.{name} is {shown(nbytes)}, expected a whole number of bytes")
