"""What an installation has: one import root, in a wheel, from a source distribution, from a clone without
symbolic links and in place; and that nobody's own validate.py, planner/ or profiler.py is run in its stead.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

import memplan

ROOT = Path(__file__).parent.parent
LINKED = ("planner", "profiler", "validate")
"""Top-level folders that are packages of memplan: memplan/planner is a link to planner."""
KINDS = (".py", ".toml", ".json", ".jsonl", ".html", ".js", ".css", ".typed", ".c", ".h", ".txt")


def has_setuptools() -> bool:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


pytestmark = pytest.mark.skipif(
    not has_setuptools(), reason="building a wheel offline needs setuptools >= 77 (extra dev has it)"
)


def clean() -> dict[str, str]:
    """This process's environment, without what would lead Python to other files."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=clean())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*args: str | Path) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *args)


def copy_of_this_tree(folder: Path, links: bool = True) -> Path:
    """A copy to build in, so that nothing is left behind. Without `links` each of them is a text file, which
    git writes on a file system that has none.
    """
    ignore = shutil.ignore_patterns("__pycache__", ".*cache", ".git", ".venv", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, folder, symlinks=True, ignore=ignore)
    for name in () if links else LINKED:
        (folder / "memplan" / name).unlink()
        (folder / "memplan" / name).write_text(f"../{name}")
    return folder


def wheel_of(source: Path, out: Path) -> Path:
    pip("wheel", source, "--no-deps", "--no-build-isolation", "--no-index", "-w", out)
    return next(out.glob("memplan-*.whl"))


def contents(wheel: Path) -> dict[str, bytes]:
    """Name -> bytes of a wheel's files; those of RECORD, a list of the others' hashes, are left out."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_this_tree(tmp_path_factory.mktemp("clone") / "memplan")


@pytest.fixture(scope="module")
def source_without_links(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_this_tree(tmp_path_factory.mktemp("no_links") / "memplan", links=False)


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_of(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    out = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, source)
    with tarfile.open(next(out.glob("memplan-*.tar.gz"))) as archive:
        archive.extractall(out, filter="data")
    return next(path for path in out.iterdir() if path.is_dir())


def test_the_wheel_has_every_source_and_data_file_under_memplan_and_nothing_else(wheel: Path):
    files = {
        f"memplan/{path.relative_to(root).as_posix()}"
        for package, root in {"memplan": ROOT / "memplan", **dict.fromkeys(LINKED, ROOT)}.items()
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix in KINDS
    }
    assert {name for name in contents(wheel) if ".dist-info/" not in name} == files
    assert "memplan/planner/tables/gpus.json" in files and "memplan/validate/claims.toml" in files
    assert "memplan/planner/inputs/catalog/llama-2-7b.json" in files and "memplan/py.typed" in files


def test_the_wheel_installs_one_top_level_name(wheel: Path):
    assert {name.partition("/")[0] for name in contents(wheel)} == {
        "memplan",
        f"memplan-{memplan.__version__}.dist-info",
    }


def test_the_metadata_declares_the_command_the_license_and_the_one_version(wheel: Path):
    info = {
        name.partition("/")[2]: text.decode()
        for name, text in contents(wheel).items()
        if ".dist-info/" in name
    }
    assert "memplan = memplan.cli.main:main" in info["entry_points.txt"]
    assert "licenses/LICENSE" in info and f"\nVersion: {memplan.__version__}\n" in info["METADATA"]


def test_a_source_distribution_makes_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path):
    assert contents(wheel_of(sdist, tmp_path)) == contents(wheel)


def test_a_clone_without_symbolic_links_makes_the_same_wheel(
    wheel: Path, source_without_links: Path, tmp_path: Path
):
    assert contents(wheel_of(source_without_links, tmp_path)) == contents(wheel)


def test_the_source_distribution_has_what_its_tests_need_and_no_litter(sdist: Path):
    names = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    kept = ("tests", "docs", "benchmarks", "campaigns", "measurements", ".ci")
    here = {
        path.relative_to(ROOT).as_posix()
        for folder in kept
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert here <= names, sorted(here - names)
    assert {"constraints.txt", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE"} <= names
    assert not [name for name in names if name.endswith(".pyc") or "cache" in name.rpartition("/")[0]]
    assert not [name for name in names if name.startswith(tuple(f"memplan/{link}/" for link in LINKED))]


Environment = Callable[..., Path]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """environment(*words): the Python of a new virtual environment after `pip install` of those words. It
    sees the libraries of this interpreter, but no editable installation of memplan among them.
    """

    def made(*words: str | Path) -> Path:
        folder = tmp_path / "venv"
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        python = folder / "bin" / "python"
        libraries = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        (own / "libraries.pth").write_text("\n".join(libraries))
        offline = ("--no-index", "--no-deps", "--no-build-isolation", "--no-compile", "--ignore-installed")
        pip("--python", python, "install", *offline, *words)
        return python

    return made


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A user's folder: a validate.py, a profiler.py and a package planner that are no business of memplan's.
    Beside it, a folder with a package `validate` as configobj installs one.
    """
    folder, other = tmp_path / "project", tmp_path / "other"
    (folder / "planner").mkdir(parents=True)
    for name in ("validate.py", "profiler.py", "planner/__init__.py"):
        (folder / name).write_text("THEIRS = True\n")
    (other / "configobj").mkdir(parents=True)
    (other / "validate").mkdir()
    (other / "configobj" / "__init__.py").touch()
    (other / "validate" / "__init__.py").write_text("THEIRS = 'configobj'\n")
    return folder


def said(python: Path, folder: Path, *words: str | Path) -> str:
    """What a program prints that runs in `folder`, with it and configobj's place on the path."""
    path = os.pathsep.join(map(str, (folder, folder.parent / "other")))
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=300, cwd=folder, env={**clean(), "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


PLANS = """
import memplan, validate, planner, profiler
assert validate.THEIRS and planner.THEIRS and profiler.THEIRS
print(memplan.plan("gpt2").peak.device_bytes)
from memplan import planner, profiler, validate
print(*(next(iter(package.__path__)) for package in (planner, profiler, validate)), sep="\\n")
"""


def plans(python: Path, folder: Path) -> list[str]:
    """Predicts gpt2 by a script and by the command in a user's folder; where memplan's parts come from."""
    (folder / "script.py").write_text(PLANS)
    peak, *places = said(python, folder, python, "script.py").split()
    assert int(peak) == memplan.plan("gpt2").peak.device_bytes
    assert "needs " in said(python, folder, python.with_name("memplan"), "gpt2")
    assert "needs " in said(python, folder, python, "-m", "memplan", "gpt2")
    return places


def test_an_installation_runs_beside_anyones_validate_planner_and_profiler(
    wheel: Path, environment: Environment, hostile: Path
):
    python = environment(wheel)
    places = plans(python, hostile)
    assert [Path(place).parts[-2:] for place in places] == [("memplan", name) for name in LINKED]
    assert all("site-packages" in place for place in places)
    if find_spec("transformers"):
        words = "import memplan; print(memplan.trainer_callback.__module__)"
        assert said(python, hostile, python, "-c", words).strip().startswith("memplan.")


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_an_editable_install_runs_there_too(
    links: bool, request: pytest.FixtureRequest, environment: Environment, hostile: Path
):
    tree: Path = request.getfixturevalue("source" if links else "source_without_links")
    python = environment("-e", tree)
    places = {str(Path(place).resolve()) for place in plans(python, hostile)}
    assert places == {str(tree.resolve() / name) for name in LINKED}
