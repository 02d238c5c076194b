"""Whose bytes are on the GPU: the four sources, best first, on stand-ins for NVML and nvidia-smi; and library
versions without metadata.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from memplan.profiler import environment, nvml
from memplan.profiler.measure import fraction_of
from memplan.profiler.nvml import ALL, GROWTH, NEW, OWN, DeviceBytes, Usage, of_this_process

MIB = 2**20
BEFORE = Usage(900 * MIB, {1: 400 * MIB})


@pytest.mark.parametrize(
    ("now", "nbytes", "source"),
    [
        (Usage(3000 * MIB, {1: 400 * MIB, 77: 2000 * MIB}), 2000 * MIB, OWN),
        (Usage(3000 * MIB, {1: 400 * MIB, 4242: 2000 * MIB}), 2000 * MIB, NEW),
        (Usage(3000 * MIB, {1: 400 * MIB, 4242: 2000 * MIB, 4243: 8 * MIB}), 2100 * MIB, GROWTH),
        (Usage(3000 * MIB, {1: 400 * MIB}), 2100 * MIB, GROWTH),
        (
            Usage(3000 * MIB, {1: 400 * MIB, 4242: 0}),
            2100 * MIB,
            GROWTH,
        ),  # NVML lists it, but may not say how much it has
        (Usage(), 3500 * MIB, ALL),
    ],
)
def test_the_best_source_that_answers_is_taken_and_named(now: Usage, nbytes: int, source: str) -> None:
    found = of_this_process(BEFORE, now, 77, 4500 * MIB, 8000 * MIB)
    assert found == DeviceBytes(nbytes, source)
    assert (found.note is None) == (source == OWN)


class FakeNvml(ModuleType):
    class NVMLError(Exception): ...

    def __init__(self, fails: tuple[str, ...] = ()) -> None:
        super().__init__("pynvml")
        self.asked: list[Any] = []
        self.open = 0
        for name in fails:
            setattr(self, name, self._fail)

    def _fail(self, *_: Any) -> Any:
        raise self.NVMLError

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self.asked.append(index)
        return "handle"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked.append(uuid)
        return "handle"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(used=500 * MIB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=5, usedGpuMemory=300 * MIB), SimpleNamespace(pid=6, usedGpuMemory=None)]

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.159"


def test_nvml_is_asked_about_the_visible_gpu_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert nvml.look() == Usage(500 * MIB, {5: 300 * MIB, 6: 0})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8a3f")
    assert nvml.driver() == "580.159"
    assert (fake.asked, fake.open) == ([3, "GPU-8a3f"], 0)
    refusing = FakeNvml(fails=("nvmlDeviceGetComputeRunningProcesses",))
    monkeypatch.setitem(sys.modules, "pynvml", refusing)
    assert nvml.look() == Usage(500 * MIB, {})
    assert refusing.open == 0


@pytest.mark.parametrize(
    "missing", [None, FakeNvml(fails=("nvmlInit",)), FakeNvml(fails=("nvmlDeviceGetHandleByIndex",))]
)
def test_without_nvml_nvidia_smi_is_asked(
    missing: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", missing)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\ncase \"$2\" in *memory.used) echo 700;; *compute-apps*) echo '5, 300'; echo '6, "
        "[N/A]';; *driver*) echo 580.1;; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert nvml.look() == Usage(700 * MIB, {5: 300 * MIB})
    assert nvml.driver() == "580.1"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert (nvml.look(), nvml.driver()) == (Usage(), None)


def test_a_fraction_allows_the_whole_cap() -> None:
    """The allocator cuts fraction x total off to whole bytes: a plain quotient would forbid the last byte of
    some caps.
    """
    total = 150_109_106_995
    caps = [2 * MIB * k for k in range(1, 70_000, 37)]
    assert any(int(cap / total * total) < cap for cap in caps)
    for cap in caps:
        assert cap <= int(fraction_of(cap, total) * total) <= cap + 1
    assert fraction_of(total, total) == 1.0


def test_the_version_of_a_library_copied_beside_others_is_read_from_its_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "copied_library"
    package.mkdir()
    (package / "__init__.py").write_text('"""x"""\n__version__ = "0.50.2"\nraise RuntimeError("imported")\n')
    (tmp_path / "nameless_library.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(environment, "LIBRARIES", ("copied_library", "nameless_library", "absent_library"))
    assert environment.versions() == {
        "copied_library": "0.50.2",
        "nameless_library": None,
        "absent_library": None,
    }


def test_the_allocators_mode_is_set_under_the_name_that_torch_reads_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import os

    torch = pytest.importorskip("torch")
    asked: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", asked.append, raising=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:20")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    environment.set_allocator("expandable")
    assert (os.environ.get("PYTORCH_CUDA_ALLOC_CONF"), os.environ["PYTORCH_ALLOC_CONF"]) == (
        None,
        "expandable_segments:True",
    )
    assert asked == ["expandable_segments:True"]
