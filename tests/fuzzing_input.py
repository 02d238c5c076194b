"""Hostile values, and documents that they are put into: what every door of `fuzzing.py` is made from."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

SECRET = "hf_QwErTyUiOpAsDfGhJkLzXcVbNm0123456789"
TOKENS = (SECRET, "sk-proj-QwErTyUiOpAsDfGhJkLz0123456789", "ghp_QwErTyUiOpAsDfGhJkLz0123456789ab")


def nasty(rng: random.Random, depth: int = 0) -> Any:
    """A value that does not belong where it is put."""
    plain: list[Any] = [
        None,
        True,
        -1,
        0,
        7,
        0.5,
        -0.5,
        1e308,
        10**30,
        10**100,
        10**400,
        float("nan"),
        float("inf"),
        "",
        " ",
        "x",
        "1e999",
        "9" * 300,
        "a" * 500,
        "\x1b[31mred\x1b[0m\x07",
        "\u202eright to left\u0085",
        "\0",
        "../../../../etc/passwd",
        "/dev/zero",
        "lora",
        "auto",
        "2020-99-99",
        "${x}",
        "<script>alert(1)</script>",
        rng.choice(TOKENS),
        [],
        {},
        [[]],
        {"a": 1},
        {"": None},
    ]
    value = rng.choice(plain)
    if depth < 3 and rng.random() < 0.2:
        inner = nasty(rng, depth + 1)
        value = rng.choice([[inner], {"x": inner}, [inner] * 20, {SECRET: inner}])
    return value


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into a document but the empty one, at most three entries of a list."""
    inner: Any = ()
    if isinstance(document, dict):
        inner = document.items()
    elif isinstance(document, list):
        inner = enumerate(document[:3])
    return [p for key, value in inner for p in ((*path, key), *places(value, (*path, key)))]


def broken(rng: random.Random, document: Any) -> tuple[Any, list[str]]:
    """A document with one to three changes: a value, a key, an entry more or less; and the keys that
    moved.
    """
    document, names = copy.deepcopy(document), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = places(document)
        if not found:
            break
        *way, last = rng.choice(found)
        names += [str(step) for step in (*way, last) if isinstance(step, str)]
        inside = document
        for step in way:
            inside = inside[step]
        kind = rng.choice(("value", "value", "value", "drop", "rename", "more"))
        if kind == "drop":
            del inside[last]
        elif kind == "value" or not isinstance(inside, dict):
            inside[last] = nasty(rng)
        elif kind == "rename":
            names.append(rng.choice((f"{last}x", str(last)[:-1], "\x1b]0;t\x07", SECRET, "")))
            inside[names[-1]] = inside.pop(last)
        else:
            names.append(rng.choice(("token", "x" * 200, "model", "method", SECRET, "\u202e")))
            inside[names[-1]] = nasty(rng)
    return document, names


def text_of(rng: random.Random, document: Any) -> str:
    """JSON, in which a large integer may have thousands of digits."""
    text = json.dumps(document, indent=rng.choice((None, 1)))
    return text.replace(str(10**400), "7" * rng.choice((400, 4000, 5000)))


def spoiled(rng: random.Random, text: str) -> bytes:
    """Bytes of a text, one time in six cut off, overwritten or blown up."""
    data = bytearray(text.encode())
    kind = rng.randrange(24)
    if kind == 0:
        del data[rng.randrange(len(data) + 1) :]
    elif kind == 1 and data:
        for _ in range(3):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 2:
        data = bytearray(
            rng.choice((b"[", b"{", b"\n- ", b'{"a":', b"a: &a [*a]\n", b"\xff\xfe", b" ")) * 3000
        )
    elif kind == 3:
        data *= rng.choice((2, 50))
    return bytes(data)


def written(rng: random.Random, path: Path, text: str) -> str:
    path.write_bytes(spoiled(rng, text))
    return str(path)
