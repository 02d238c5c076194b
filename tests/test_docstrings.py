"""Every public class and function says in a sentence what it is, or is private."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("planner", "profiler", "validate", "memplan")


def undocumented(body: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[str]:
    """Public definitions at module or class level that have no docstring."""
    for node in body.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
            if ast.get_docstring(node) is None:
                yield f"{prefix}{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node, f"{prefix}{node.name}.")


def test_every_public_definition_has_a_docstring() -> None:
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for top in SOURCES
        for path in sorted((ROOT / top).rglob("*.py"))
        for name in undocumented(ast.parse(path.read_text()))
    ]
    assert not missing


def test_a_definition_without_one_is_found() -> None:
    source = "class A:\n    'said'\n    def f(self): ...\n    def _g(self): ...\ndef h():\n    'said'\n"
    assert list(undocumented(ast.parse(source))) == ["A.f"]
