"""The stub libraries of one environment: written, compiled once, kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from memplan.planner.tables.errors import UsageError, shorten
from memplan.profiler.dryrun.symbols import Symbol, listing, looked_up, needed, shared_objects

SOURCES = Path(__file__).with_name("stubs")
MEMORY = "libmemplan_stub_memory.so"
ARCHITECTURES = "architectures.txt"
DRIVER, NVML = "libcuda.so.1", "libnvidia-ml.so.1"
PARTS = {
    "libcudart": "cudart.c",
    "libcuda": "driver.c",
    "libnvidia-ml": "nvml.c",
    "libcublas": "blas.c",
    "libcublasLt": "blas.c",
    "libnccl": "nccl.c",
    **dict.fromkeys(("libcudnn", "libnvrtc", "libcusparse", "libcusolver"), "others.c"),
}
"""Library -> the source that holds what it does; every other symbol that is needed of it is a success."""
MACHINES = ("x86_64", "aarch64")


def check_machine() -> None:
    """Raises UsageError where the stubs do not run at all."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise UsageError(
            f"memplan dry-run runs on Linux (x86-64, aarch64): torch's CUDA build for {platform.system()} "
            f"{platform.machine()} does not load its libraries in a way that stubs can stand in for"
        )


def stub_libraries(
    python: Path, sites: Sequence[Path], torch_version: str, cuda: str, cache: Path | None = None
) -> Path:
    """The folder with the stub libraries for the environment with those folders of packages, the one with
    torch first; compiled where needed.

    A folder that stands under its final name is whole: it is written beside and renamed, under a lock.
    """
    check_machine()
    root = cache or _cache_folder()
    kept = root / _key(sites, torch_version, cuda)
    if not kept.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / "lock"):
            if not kept.is_dir():
                _build(python, sites, cuda, kept)
    return kept


def preload(folder: Path) -> str:
    """The value of LD_PRELOAD: memory first, which the others use."""
    names = sorted(path.name for path in folder.iterdir() if ".so" in path.name and not path.is_symlink())
    return ":".join(str(folder / name) for name in sorted(names, key=lambda name: name != MEMORY))


def compiler() -> list[str]:
    """The command of a C compiler: the system's, else the one that the package ziglang brings. Raises
    UsageError.
    """
    named = os.environ.get("CC", "").split()
    for words in ([named] if named else []) + [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(words[0]):
            return words
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise UsageError("memplan dry-run needs a C compiler once: install gcc or clang, or pip install ziglang")


def sources_for(libraries: set[str], symbols: set[Symbol]) -> dict[str, tuple[str, str]]:
    """Library -> (C source, linker's version script, empty where it has no versions)."""
    by_library: dict[str, dict[str, set[str]]] = {
        name: defaultdict(set) for name in libraries | {DRIVER, NVML}
    }
    for symbol in symbols:
        by_library.setdefault(symbol.library, defaultdict(set))[symbol.version].add(symbol.name)
    extra = (SOURCES / "driver_names.txt").read_text(encoding="utf-8").split()
    by_library[DRIVER][""].update(extra)
    return {
        name: (_source(name, versions), _script(versions)) for name, versions in sorted(by_library.items())
    }


def _source(library: str, versions: dict[str, set[str]]) -> str:
    """What the part for the library defines wins: the successes are weak."""
    stem = library.split(".so")[0]
    names = sorted(set().union(*versions.values())) if versions else []
    lines = [f"#define LIB_{re.sub(r'^lib', '', stem).replace('-', '_')} 1", '#include "stub.h"']
    if stem in PARTS:
        lines.append(f'#include "{PARTS[stem]}"')
        names = [name for name in names if name not in defined_in(PARTS[stem])]
    lines += [f"API __attribute__((weak)) int {name}(void) {{ return SUCCESS; }}" for name in names]
    return "\n".join(lines) + "\n"


def defined_in(part: str) -> set[str]:
    """The functions that a part defines for any library: each stands on a line that begins with API."""
    text = (SOURCES / part).read_text(encoding="utf-8")
    return set(re.findall(r"^API [\w \*]*?\b(\w+)\(", text, re.MULTILINE))


def _script(versions: dict[str, set[str]]) -> str:
    return "".join(
        f"{version} {{ global: {' '.join(f'{name};' for name in sorted(names))} }};\n"
        for version, names in sorted(versions.items())
        if version and names
    )


def _build(python: Path, sites: Sequence[Path], cuda: str, kept: Path) -> None:
    libraries, symbols = needed(shared_objects(*sites), int(cuda.split(".")[0]))
    symbols |= {Symbol(NVML if name.startswith("nvml") else DRIVER, "", name) for name in looked_up(sites[0])}
    with tempfile.TemporaryDirectory(prefix="build-", dir=kept.parent) as name:
        folder = Path(name)
        made = folder / "lib"
        made.mkdir()
        command = [
            *compiler(),
            "-shared",
            "-fPIC",
            "-O1",
            "-w",
            f"-DSTUB_CUDA={_number(cuda)}",
            f"-I{SOURCES}",
        ]
        _compile(
            [
                *command,
                f"-Wl,-soname,{MEMORY}",
                "-o",
                str(made / MEMORY),
                str(SOURCES / "memory.c"),
                "-lpthread",
            ]
        )
        for library, (source, script) in sources_for(libraries, symbols).items():
            (folder / "stub.c").write_text(source, encoding="utf-8")
            words = [*command, f"-Wl,-soname,{library}", "-o", str(made / library), str(folder / "stub.c")]
            words += [str(made / MEMORY), "-Wl,-rpath,$ORIGIN", "-ldl"]
            if script:
                (folder / "stub.map").write_text(script, encoding="utf-8")
                words.append(f"-Wl,--version-script={folder / 'stub.map'}")
            _compile(words)
        (made / "libcuda.so").symlink_to(DRIVER)  # what a linker looks for
        (made / ARCHITECTURES).write_text(_architectures(python, preload(made)), encoding="utf-8")
        made.rename(kept)


def _architectures(python: Path, libraries: str) -> str:
    """The compute capabilities that torch has kernels for, as torch tells over the stubs: '75 80 86'."""
    ask = "import torch; print(*(name.split('_')[1] for name in torch.cuda.get_arch_list()))"
    command = [str(python), "-c", ask]
    around = {**os.environ, "LD_PRELOAD": libraries}
    around.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=around)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise UsageError(f"torch of {python} does not start over the stub libraries: {shorten(last[0], 300)}")
    return done.stdout.strip()


def architecture(folder: Path, capability: tuple[int, int]) -> int | None:
    """Whose kernels a GPU of that compute capability runs: the newest of its generation that is not newer
    than it.
    """
    words = re.findall(r"\d+", (folder / ARCHITECTURES).read_text(encoding="utf-8"))
    wanted = capability[0] * 10 + capability[1]
    return max(
        (int(word) for word in words if int(word) <= wanted and int(word) // 10 == wanted // 10), default=None
    )


def _compile(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise UsageError(
            f"the C compiler {command[0]} could not build the stub libraries: "
            f"{shorten(done.stderr.strip(), 300)}"
        )


def _number(cuda: str) -> int:
    """'12.8' -> 12080, as CUDA counts its versions."""
    major, _, minor = cuda.partition(".")
    return int(major) * 1000 + int(minor or 0) * 10


def _key(sites: Sequence[Path], torch_version: str, cuda: str) -> str:
    """What the libraries depend on: torch, this folder's sources, the environment's shared objects."""
    digest = hashlib.sha256()
    for path in [*sorted(SOURCES.iterdir()), Path(__file__), Path(__file__).with_name("symbols.py")]:
        digest.update(path.read_bytes())
    digest.update("\n".join([cuda, platform.machine(), *listing(*sites)]).encode())
    return f"torch-{re.sub(r'[^0-9A-Za-z.+]', '_', torch_version)}-{digest.hexdigest()[:16]}"


def _cache_folder() -> Path:
    try:
        from platformdirs import user_cache_path
    except ImportError:
        raise UsageError("memplan dry-run needs platformdirs: pip install 'memplan[dry-run]'") from None
    return Path(user_cache_path("memplan")) / "dry-run"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One builder at a time; the lock ends with the process that holds it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
