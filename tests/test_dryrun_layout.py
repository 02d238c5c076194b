"""The stubs' structs, field by field, against NVIDIA's own headers.

None of those is in this repository. MEMPLAN_CUDA_HEADERS names a folder that holds them, unpacked by hand
from the wheels of nvidia-cuda-runtime-cu12 and nvidia-cuda-runtime (CUDA 13). Each version there is checked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from memplan.profiler.dryrun.build import SOURCES

FOLDER = os.environ.get("MEMPLAN_CUDA_HEADERS")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="MEMPLAN_CUDA_HEADERS names no folder of CUDA headers"),
    pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler here"),
]
STRUCTS = {"AT": "cudaDeviceProp", "FUNCTION": "cudaFuncAttributes", "POINTER": "cudaPointerAttributes"}
SIZES = {"PROPERTIES_BYTES": "cudaDeviceProp", "FUNCTION_BYTES": "cudaFuncAttributes"}
SIZES |= {"POINTER_BYTES": "cudaPointerAttributes"}
WIDTHS = {"INT": 4, "SIZE": 8}


def headers() -> dict[int, Path]:
    """Version of CUDA (12080) -> the folder with its headers."""
    found = {}
    for path in sorted(Path(FOLDER or "").rglob("cuda_runtime_api.h")):
        version = re.search(r"#define CUDART_VERSION\s+(\d+)", path.read_text(encoding="utf-8"))
        if version:
            found[int(version[1])] = path.parent
    return found


def places() -> list[tuple[str, str]]:
    """(prefix, field) of every place that the stubs' own header has."""
    text = (SOURCES / "layout.h").read_text(encoding="utf-8")
    return [(a, b) for a, b in re.findall(r"#define (AT|FUNCTION|POINTER)_(\w+) ", text) if b != "BYTES"]


def compiled(version: int, include: Path, moved: str = "") -> subprocess.CompletedProcess[str]:
    """The checks given to a C compiler; `moved` is a place that is put 4 bytes further."""
    lines = ["#include <stddef.h>", "#include <cuda_runtime_api.h>", '#include "layout.h"']
    for prefix, field in places():
        wrong = " + 4" if f"{prefix}_{field}" == moved else ""
        where = f"offsetof(struct {STRUCTS[prefix]}, {field})"
        lines.append(f'_Static_assert({prefix}_{field}{wrong} == {where}, "{prefix}_{field}");')
    for name, struct in SIZES.items():
        lines.append(f'_Static_assert({name} == sizeof(struct {struct}), "{name}");')
    runtime = (SOURCES / "cudart.c").read_text(encoding="utf-8")
    for kind, field in re.findall(r"^    (INT|SIZE)\((\w+),", runtime, re.MULTILINE):
        struct = STRUCTS["AT" if ("AT", field) in places() else "FUNCTION"]
        size = f"sizeof(((struct {struct} *)0)->{field})"
        lines.append(f'_Static_assert({WIDTHS[kind]} == {size}, "width of {field}");')
    if (include / "cuda.h").is_file():  # the driver's, which cuMemCreate reads the device from
        lines += [
            "#include <cuda.h>",
            '_Static_assert(offsetof(CUmemAllocationProp, location.id) == 12, "id");',
        ]
    command = [
        "cc",
        "-x",
        "c",
        "-fsyntax-only",
        f"-DSTUB_CUDA={version}",
        f"-I{include}",
        f"-I{SOURCES}",
        "-",
    ]
    return subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True)


def test_both_major_versions_are_there() -> None:
    assert {version // 1000 for version in headers()} == {12, 13}
    assert len(places()) >= 45


def test_every_field_is_where_nvidia_has_it() -> None:
    for version, include in headers().items():
        done = compiled(version, include)
        assert done.returncode == 0, f"CUDA {version}: {done.stderr[:2000]}"


@pytest.mark.parametrize(
    "moved", ["AT_major", "AT_memoryPoolsSupported", "FUNCTION_numRegs", "POINTER_device"]
)
def test_a_field_out_of_place_is_found(moved: str) -> None:
    for version, include in headers().items():
        done = compiled(version, include, moved)
        assert done.returncode != 0 and moved in done.stderr
