"""Which CUDA libraries the shared objects of an environment link, and which symbols of which version they
need there.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memplan.planner.tables.errors import UsageError

FAMILIES = (
    ("nvshmem", "libnvshmem_host"),
    ("cuFile", "libcufile"),
    ("cupti", "libcupti"),
    ("cudnn", "libcudnn"),
    ("cublasLt", "libcublasLt"),
    ("cublas", "libcublas"),
    ("cusparseLt", "libcusparseLt"),
    ("cusparse", "libcusparse"),
    ("cusolver", "libcusolver"),
    ("cufft", "libcufft"),
    ("curand", "libcurand"),
    ("nccl", "libnccl"),
    ("pncclGet", "libnccl"),
    ("nvrtc", "libnvrtc"),
    ("nvJitLink", "libnvJitLink"),
    ("nvml", "libnvidia-ml"),
    ("nvtx", "libnvToolsExt"),
    ("cuda", "libcudart"),
    ("__cuda", "libcudart"),
    ("cu", "libcuda"),
)
"""How a symbol without a version names its library: the longest prefix first."""
_CUDA = re.compile(r"lib(cu|nv|nccl)[\w-]*\.so")
_SKIPPED = {"nvidia", "pip", "setuptools", "__pycache__"}
"""Folders that are not scanned: NVIDIA's own packages are what the stubs stand in for."""


@dataclass(frozen=True, order=True)
class Symbol:
    """One symbol that somebody needs: `version` is empty where the library has none."""

    library: str
    version: str
    name: str


def shared_objects(*sites: Path) -> Iterator[Path]:
    """Every shared object under folders of packages, in a fixed order. A package that an earlier folder has
    is hidden in a later one.
    """
    hidden = set(_SKIPPED)
    for site in sites:
        found: set[str] = set()
        for folder, folders, files in os.walk(site):
            top = folder == str(site)
            folders[:] = sorted(name for name in folders if name not in (hidden if top else _SKIPPED))
            found |= set(folders) if top else set()
            yield from (Path(folder, name) for name in sorted(files) if re.search(r"\.so(\.\d+)*$", name))
        hidden |= found


def listing(*sites: Path) -> list[str]:
    """What tells one state of the environment from another: each shared object's path and size."""
    return [
        f"{next(path.relative_to(site) for site in sites if path.is_relative_to(site))} {path.stat().st_size}"
        for path in shared_objects(*sites)
    ]


def needed(paths: Iterable[Path], major: int) -> tuple[set[str], set[Symbol]]:
    """(sonames of CUDA libraries that are linked, symbols that are needed of them) for that major version of
    CUDA.

    What links another version's runtime (bitsandbytes brings one library for each) is left out.
    """
    libraries: set[str] = set()
    symbols: set[Symbol] = set()
    for path in paths:
        linked, wanted = _read(path)
        if any(re.match(rf"libcudart\.so\.(?!{major}\b)", name) for name in linked):
            continue
        libraries |= linked
        symbols |= wanted
    return libraries, symbols


def looked_up(site: Path) -> set[str]:
    """The driver's and NVML's functions that torch looks up by name while it runs: the names are text in its
    library.
    """
    path = site / "torch" / "lib" / "libc10_cuda.so"
    if not path.is_file():
        return set()
    words = re.findall(rb"\0(nvml[A-Z]\w+|cu[A-Z][A-Za-z]\w+)(?=\0)", path.read_bytes())
    return {word.decode() for word in words}


def _read(path: Path) -> tuple[set[str], set[Symbol]]:
    """The same of one file; nothing of a file that is no ELF object or links no CUDA library."""
    elf_file, error = _elftools()
    with path.open("rb") as file:
        try:
            elf = elf_file(file)
            dynamic = elf.get_section_by_name(".dynamic")
            tags = list(dynamic.iter_tags()) if dynamic is not None else []
        except error:
            return set(), set()
        linked = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED" and _CUDA.match(tag.needed)}
        undefined = _undefined(elf) if linked else []
        versions = _versions(elf) if linked else {}
    symbols = set()
    for name, index in undefined:
        library, version = versions.get(index, ("", ""))
        if not library:
            library = _family(name, linked)
        if library and _CUDA.match(library):
            symbols.add(Symbol(library, version, name))
    return linked, symbols


def _family(name: str, linked: set[str]) -> str:
    """The linked library that a symbol without a version belongs to; empty where it is not CUDA's."""
    for prefix, stem in FAMILIES:
        if name.startswith(prefix) and (prefix != "cu" or name[2:3].isupper()):
            return next((library for library in sorted(linked) if library.startswith(stem + ".so")), "")
    return ""


def _undefined(elf: Any) -> list[tuple[str, int]]:
    """(name, index of its version) of every undefined dynamic symbol. Read whole: torch's libraries have
    10^5.
    """
    table = elf.get_section_by_name(".dynsym")
    names = elf.get_section(table["sh_link"]).data()
    order = "<" if elf.little_endian else ">"
    section = elf.get_section_by_name(".gnu.version")
    size = table.data_size // 24
    indices = struct.unpack(f"{order}{size}H", section.data()) if section is not None else (0,) * size
    found = []
    for row, (name, _, _, where, _, _) in enumerate(struct.iter_unpack(f"{order}IBBHQQ", table.data())):
        if where == 0 and name:
            found.append(
                (names[name : names.index(b"\0", name)].decode("ascii", "replace"), indices[row] & 0x7FFF)
            )
    return found


def _versions(elf: Any) -> dict[int, tuple[str, str]]:
    """Index of a version -> (library, version), from the versions that the file needs."""
    section = elf.get_section_by_name(".gnu.version_r")
    if section is None:
        return {}
    return {
        entry.entry.vna_other & 0x7FFF: (library.name, entry.name)
        for library, entries in section.iter_versions()
        for entry in entries
    }


def _elftools() -> tuple[Any, type[Exception]]:
    try:
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile
    except ImportError:
        raise UsageError("memplan dry-run needs pyelftools: pip install 'memplan[dry-run]'") from None
    return ELFFile, ELFError
