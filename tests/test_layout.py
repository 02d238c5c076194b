"""The layout holds: import direction, heavy libraries only where they belong, small files, unique test names, every package listed."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ("planner", "profiler", "validate", "memplan")
"""Import direction: a package may import those before it."""
MOST_LINES = 350
TORCH = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "safetensors")
TORCH_HOMES = ("planner/live/", "profiler/")
FRONT = ("rich", "click")
LAZY = (*TORCH, "numpy", "yaml", "huggingface_hub", "pynvml", "psutil", "matplotlib")
"""Never imported by the modules that a prediction of the formula loads, so only inside functions there."""
LAZY_HOMES = ("planner/live/", "profiler/", "validate/")


def sources() -> list[Path]:
    return sorted(path for package in ORDER for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool, bool]]:
    """(module, at the top level of the file, only for type checking) of every absolute import."""

    def walk(node: ast.AST, top: bool, typing: bool) -> Iterator[tuple[str, bool, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, top, typing) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                yield child.module, top, typing
            else:
                guard = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
                inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, top and not inner, typing or guard)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True, False)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def direction_violations(path: Path, home: str) -> list[str]:
    later = ORDER[ORDER.index(home) + 1 :]
    return [f"{path.name} imports {module}" for module, _, _ in imports(path) if module.split(".")[0] in later]


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_a_file_keeps_to_the_layout(path: Path):
    where = relative(path)
    assert direction_violations(path, where.split("/")[0]) == [], f"import direction is {' <- '.join(ORDER)}"
    for module, top, typing in imports(path):
        root = module.split(".")[0]
        if typing:
            continue
        if root in FRONT:
            assert where.startswith("memplan/"), f"{where} imports {root}: rich and click belong to memplan/"
        if root in TORCH and not where.startswith(TORCH_HOMES):
            raise AssertionError(f"{where} imports {root}: torch and its libraries belong to {' and '.join(TORCH_HOMES)}")
        if root in LAZY and top and not where.startswith(LAZY_HOMES):
            raise AssertionError(f"{where} imports {root} at its top level: import it where it is used")
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{where} has {lines} lines: two ideas in one file?"


def test_the_direction_check_can_fail(tmp_path: Path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from memplan.api import plan\n")
    assert direction_violations(wrong, "planner") == ["wrong.py imports memplan.api"]
    assert direction_violations(wrong, "memplan") == []


def module_graph() -> dict[str, set[str]]:
    """Each module of ours -> those that it imports, anywhere in the file but for type checking."""
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in sources()}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
        hidden = {id(child) for guard in guards for child in ast.walk(guard)}
        wanted: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and id(node) not in hidden:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= (inner & modules.keys()) or {node.module}
            elif isinstance(node, ast.Import) and id(node) not in hidden:
                wanted |= {alias.name for alias in node.names}
        graph[name] = (wanted & modules.keys()) - {name}
    return graph


def test_no_import_runs_in_a_circle():
    graph = module_graph()
    assert len(graph) > 200 and sum(map(len, graph.values())) > len(graph), "the graph was read"
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)
    with pytest.raises(CycleError):
        list(TopologicalSorter({**graph, "planner.errors": {"planner.setup"}}).static_order())


def test_validate_has_no_init_since_configobj_installs_a_package_of_that_name():
    assert not (ROOT / "validate" / "__init__.py").exists()


def test_tests_have_no_init_and_unique_names():
    tests = list((ROOT / "tests").rglob("*.py"))
    assert not [path for path in tests if path.name == "__init__.py"]
    names = [path.name for path in tests if path.name != "conftest.py"]
    assert len(names) == len(set(names))


def test_every_package_is_listed_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in sources()}
    assert listed == found


def test_data_files_are_package_data():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, own in project["tool"]["setuptools"]["package-data"].items()
        for pattern in own
    ]
    data = [
        path
        for package in ORDER
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix in (".toml", ".json", ".html", ".js", ".css")
    ]
    assert data
    missing = [relative(path) for path in data if not any(path.relative_to(ROOT).match(pattern) for pattern in patterns)]
    assert not missing, "not in the wheel: add them to package-data"


def test_nothing_names_the_machine_it_was_written_on():
    own = Path(__file__)
    place = re.compile(r"(?<![\w.-])/(work|root|tmp)/")
    text = [
        *sources(),
        *(ROOT / "tests").glob("*.py"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "benchmarks").glob("*.py"),
        ROOT / "README.md",
        ROOT / ".ci/run",
    ]
    found = [relative(path) for path in text if path.exists() and path != own and place.search(path.read_text(encoding="utf-8"))]
    assert not found
