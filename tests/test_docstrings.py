"""Every public class and function of a module says in its docstring what it is, in at least one sentence."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("memplan", "planner", "profiler", "validate")
SOURCES = sorted(
    file
    for folder in FOLDERS
    for file in (ROOT / folder).rglob("*.py")
    if not any(parent.is_symlink() for parent in file.parents)  # memplan/planner is planner, and so on
)
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def undocumented(source: str) -> list[str]:
    """The public module-level definitions without a sentence as their docstring."""
    found = (node for node in ast.parse(source).body if isinstance(node, Definition))
    return [
        node.name
        for node in found
        if not node.name.startswith("_")
        and not (ast.get_docstring(node) or "").rstrip().endswith((".", ")", ":", "`"))
    ]


def test_every_public_definition_is_documented() -> None:
    assert len(SOURCES) > 200
    missing = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in SOURCES
        for name in undocumented(file.read_text(encoding="utf-8"))
    ]
    assert not missing, f"write one true sentence, or make it private: {missing}"


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("def f():\n    pass\n", ["f"]),
        ("class C:\n    x = 1\n", ["C"]),
        ('def f():\n    """Bytes of f."""\n', []),
        ('def f():\n    """TODO"""\n', ["f"]),
        ("def _f():\n    pass\n", []),
        ("def f():\n    'What it is.'\n    def g():\n        pass\n", []),
    ],
)
def test_the_check_can_fail(source: str, missing: list[str]) -> None:
    assert undocumented(source) == missing
