"""The layout holds: import direction, heavy libraries only where they belong, small files, unique test names,
every package listed.
"""

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
TABLES = ("planner/trace/device/kernels_table.py",)
"""Data written as Python, one row an entry: as long as there are rows."""
TORCH = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "safetensors")
TORCH_HOMES = ("planner/run/", "planner/trace/", "profiler/")
FRONT = ("rich", "click")
LAZY = (*TORCH, "numpy", "yaml", "huggingface_hub", "pynvml", "psutil", "matplotlib")
"""Never imported by the modules that a prediction of the formula loads, so only inside functions there."""
LAZY_HOMES = ("planner/run/", "planner/trace/", "profiler/", "validate/")


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


INSIDE = (
    {"tables"},
    {"inputs"},
    {"prediction"},
    {"importers", "allocator"},
    {"formula", "run"},
    {"trace"},
    {"compiled"},
    {"answers"},
)
"""Import direction inside planner: a part may import those of earlier groups and itself, not its neighbors of
the same group.
"""


def place(module: str) -> tuple[int, int, str]:
    """(package, group inside planner, part) of a module of ours, as `memplan.planner.tables.units`; the front
    door has no second name.
    """
    parts = module.split(".")[1:]
    package = parts[0] if parts and parts[0] in ORDER else "memplan"
    part = parts[1] if package == "planner" and len(parts) > 1 else ""
    group = next((number for number, names in enumerate(INSIDE) if part in names), -1)
    return ORDER.index(package), group, part


def direction_violations(name: str, wanted: set[str]) -> list[str]:
    """What module `name` imports although it stands before it: another package's, or another part's of
    planner.
    """
    package, group, part = place(name)
    found = []
    for other in sorted(wanted):
        its_package, its_group, its_part = place(other)
        up = its_package > package or (
            its_package == package == 0 and its_part != part and its_group >= group
        )
        if up and not (name == "memplan" or other == "memplan.planner"):
            found.append(f"{name} imports {other}")
    return found


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_a_file_keeps_to_the_layout(path: Path):
    where = relative(path)
    for module, top, typing in imports(path):
        root = module.split(".")[0]
        if typing:
            continue
        if root in FRONT:
            assert where.startswith("memplan/"), f"{where} imports {root}: rich and click belong to memplan/"
        if root in TORCH and not where.startswith(TORCH_HOMES):
            raise AssertionError(
                f"{where} imports {root}: torch and its libraries belong to {' and '.join(TORCH_HOMES)}"
            )
        if root in LAZY and top and not where.startswith(LAZY_HOMES):
            raise AssertionError(f"{where} imports {root} at its top level: import it where it is used")
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES or where in TABLES, f"{where} has {lines} lines: two ideas in one file?"


def module_of(path: Path) -> str:
    """The name by which a source file is imported: everything stands under memplan."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return name if name.split(".")[0] == "memplan" else f"memplan.{name}"


def module_graph() -> dict[str, set[str]]:
    """Each module of ours -> those that it imports, anywhere in the file, for type checking too."""
    modules = {module_of(path): path for path in sources()}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        wanted: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= (inner & modules.keys()) or {node.module}
            elif isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
        graph[name] = (wanted & modules.keys()) - {name}
    return graph


def test_imports_run_one_way():
    graph = module_graph()
    found = [line for name, wanted in graph.items() for line in direction_violations(name, wanted)]
    assert found == [], (
        f"{' <- '.join(ORDER)}, inside planner {' <- '.join(' | '.join(sorted(group)) for group in INSIDE)}"
    )
    parts = {place(name)[2] for name in graph if place(name)[0] == 0} - {""}
    assert parts == {name for group in INSIDE for name in group}, (
        "every part of planner has its place in the order"
    )


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("memplan.planner.tables.units", "memplan.planner.inputs.setup"),
        ("memplan.planner.formula.engine", "memplan.planner.run.step"),
        ("memplan.planner.trace.engine", "memplan.planner.answers.verdict"),
        ("memplan.planner.tables.units", "memplan.api"),
        ("memplan.profiler.session", "memplan.validate.claims"),
    ],
)
def test_the_direction_check_can_fail(name: str, other: str):
    assert direction_violations(name, {other}) == [f"{name} imports {other}"]
    assert direction_violations(other, {name}) == [] or {place(name)[1], place(other)[1]} == {4}


def test_no_source_file_imports_a_top_level_planner():
    """A user's own planner.py, profiler.py or validate.py would be imported in its place."""
    everything = [*sources(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    found = [
        f"{relative(path)}: {module}"
        for path in everything
        for module, _, _ in imports(path)
        if module.split(".")[0] in ORDER[:-1]
    ]
    assert found == []


@pytest.mark.parametrize("package", ORDER[:-1])
def test_memplan_is_the_one_import_root(package: str):
    link = ROOT / "memplan" / package
    assert link.resolve() == ROOT / package, "memplan/planner and the like are links to the folders beside it"


def test_no_import_runs_in_a_circle():
    graph = module_graph()
    assert len(graph) > 200 and sum(map(len, graph.values())) > len(graph), "the graph was read"
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)
    with pytest.raises(CycleError):
        list(
            TopologicalSorter(
                {**graph, "memplan.planner.tables.errors": {"memplan.planner.inputs.setup"}}
            ).static_order()
        )


def test_tests_have_no_init_and_unique_names():
    tests = list((ROOT / "tests").rglob("*.py"))
    assert not [path for path in tests if path.name == "__init__.py"]
    names = [path.name for path in tests if path.name != "conftest.py"]
    assert len(names) == len(set(names))


def test_every_package_is_listed_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])
    found = {module_of(path.parent / "__init__.py") for path in sources()}
    assert listed == found


def test_data_files_are_package_data():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = [
        f"{package.removeprefix('memplan.').replace('.', '/')}/{pattern}"
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
    missing = [
        relative(path)
        for path in data
        if not any(path.relative_to(ROOT).match(pattern) for pattern in patterns)
    ]
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
    found = [
        relative(path)
        for path in text
        if path.exists() and path != own and place.search(path.read_text(encoding="utf-8"))
    ]
    assert not found
