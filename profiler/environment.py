"""What a measurement ran on: GPU, driver, CUDA, library versions, and the allocator's mode as the allocator itself reports it.

`describe` asks the device and so initialises CUDA: it runs in a case's own process, never in the parent that cases are forked from.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Literal

from planner.errors import UsageError

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
INSTALL = "pip install 'memplan[profile]'"
_ALLOC_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # torch >= 2.9 reads the first, the older name still works


def versions() -> dict[str, str | None]:
    """Versions of the libraries that decide memory; None where one is not installed."""
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def require(names: tuple[str, ...] = ("torch", "transformers", "accelerate")) -> None:
    """UsageError with the exact install line where a library that profiling needs is missing."""
    missing = [name for name in names if versions().get(name, "") is None]
    if missing:
        raise UsageError(f"profiling needs {', '.join(missing)}, not installed here: {INSTALL}")


def require_device(device: str) -> None:
    """UsageError where `device` cannot be used by this process. Initialises CUDA."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        why = "this torch is a CPU build" if torch.version.cuda is None else "torch sees none"
        raise UsageError(f"no CUDA GPU here ({why}): use --device cpu to measure on the CPU's allocator, or memplan plan to predict")


def describe(device: Literal["cuda", "cpu"]) -> dict[str, Any]:
    """The environment of a record. Sizes in bytes; `gpu` is None on CPU."""
    require()
    import torch

    common: dict[str, Any] = {
        "device": device,
        "gpu": None,
        "versions": versions(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
    }
    if device == "cpu":
        threads = torch.get_num_threads()
        return {**common, "machine": processor(), "torch_threads": threads, "memory_bytes": _host_memory(), "allocator": None}
    require_device(device)
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    return {
        **common,
        "gpu": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "multiprocessors": properties.multi_processor_count,
        "total_bytes": total,
        "used_at_start_bytes": total - free,  # by this process's context and by others
        "driver": driver(),
        "cuda": torch.version.cuda,
        "allocator": allocator(),
        "cublas_workspace_config": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


def allocator() -> dict[str, Any]:
    """The CUDA caching allocator's effective settings, read from its own snapshot (an environment variable may have come too late)."""
    import torch

    settings = {key: _plain(value) for key, value in torch.cuda.memory._snapshot().get("allocator_settings", {}).items()}
    return {
        "mode": mode_of(settings),
        "backend": torch.cuda.memory.get_allocator_backend(),
        "settings": settings,
        "environment": next((os.environ[name] for name in _ALLOC_NAMES if os.environ.get(name)), None),
    }


def mode_of(settings: Mapping[str, Any]) -> str | None:
    """native or expandable, from a snapshot's settings; None where they do not say."""
    value = settings.get("expandable_segments")
    return None if value is None else "expandable" if value in (True, "True", "true", 1) else "native"


def set_allocator(mode: Literal["native", "expandable"]) -> None:
    """Choose the allocator's mode for this process, before anything is allocated."""
    import torch

    wanted = f"expandable_segments:{mode == 'expandable'}"
    os.environ.update(dict.fromkeys(_ALLOC_NAMES, wanted))
    with contextlib.suppress(AttributeError):  # the environment alone also works before CUDA is initialised
        torch.cuda.memory._set_allocator_settings(wanted)


def driver() -> str | None:
    """The NVIDIA driver's version by NVML; None where NVML cannot be asked."""
    handle = _nvml()
    if handle is None:
        return None
    import pynvml

    text = pynvml.nvmlSystemGetDriverVersion()
    return text.decode() if isinstance(text, bytes) else str(text)


def device_bytes() -> int | None:
    """Bytes of the first GPU that NVML charges this process; None where NVML cannot tell (a container hides process ids)."""
    handle = _nvml()
    if handle is None:
        return None
    import pynvml

    try:
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return None
    mine = [process.usedGpuMemory for process in running if process.pid == os.getpid()]
    return int(mine[0]) if mine and mine[0] else None


def _nvml() -> Any | None:
    """NVML's handle of the GPU that torch calls device 0, matched by UUID; None where that is not possible."""
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(0).uuid)
        return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
    except Exception:  # NVML is optional evidence: absent library, absent driver, unknown UUID all mean "cannot tell"
        return None


def processor() -> str | None:
    """The CPU's model name, where the system tells it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as handle:
        for line in handle:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _host_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)
