"""The wheel: its contents, that it works away from the source tree, and beside configobj, which installs a
`validate` too.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("memplan", "planner", "profiler", "validate")


def has_setuptools() -> bool:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


pytestmark = pytest.mark.skipif(
    not has_setuptools(), reason="building a wheel offline needs setuptools >= 77 (extra dev has it)"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built offline from a copy, so that no build folder is left behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out))
    return next(out.glob("memplan-*.whl"))


def pip(*args: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *args],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_has_every_source_and_data_file_and_nothing_else(wheel: Path):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    kinds = (".py", ".toml", ".json", ".html", ".js", ".css", ".typed")
    files = (
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix in kinds
    )
    expected = {path.relative_to(ROOT).as_posix() for path in files}
    assert inside == expected
    assert "planner/tables/gpus.json" in inside and "planner/inputs/catalog/llama-2-7b.json" in inside
    assert "validate/__init__.py" not in inside


def test_the_console_script_and_the_licence_are_declared(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    info = next(name for name in archive.namelist() if name.endswith("/entry_points.txt"))
    assert "memplan = memplan.cli.main:main" in archive.read(info).decode()
    assert any(name.endswith("LICENSE") for name in archive.namelist())


def fake_configobj(folder: Path) -> Path:
    """A wheel that, like configobj's, installs a top-level package `validate` with an __init__.py of its
    own.
    """
    path = folder / "configobj-5.0.9-py3-none-any.whl"
    info = "configobj-5.0.9.dist-info"
    files = {
        "configobj/__init__.py": "",
        "configobj/validate.py": "class Validator: ...\n",
        "validate/__init__.py": "from configobj.validate import *\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: configobj\nVersion: 5.0.9\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        names = [*files, f"{info}/RECORD"]
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))
    return path


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An empty virtual environment's Python."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True, timeout=120
    )
    return tmp_path / "venv" / "bin" / "python"


def works(python: Path, code: str) -> bool:
    return subprocess.run([python, "-I", "-c", code], capture_output=True, timeout=60).returncode == 0


OURS = (
    "import pathlib, validate; assert any((pathlib.Path(p) / 'claims.toml').exists() for p in "
    "validate.__path__)"
)
THEIRS = "from validate import Validator"


@pytest.mark.parametrize("order", [("memplan", "configobj"), ("configobj", "memplan")], ids=" then ".join)
def test_it_lives_beside_configobj_in_either_order(
    wheel: Path, environment: Path, tmp_path: Path, order: tuple[str, str]
):
    wheels = {"memplan": wheel, "configobj": fake_configobj(tmp_path)}
    install = ("--python", str(environment), "install", "--no-index", "--no-deps", "--no-compile")
    for name in order:
        pip(*install, str(wheels[name]))
    assert works(environment, OURS) and works(environment, THEIRS)
    pip("--python", str(environment), "uninstall", "-y", order[0])
    assert works(environment, OURS) == (order[0] == "configobj")
    assert works(environment, THEIRS) == (order[0] == "memplan")
