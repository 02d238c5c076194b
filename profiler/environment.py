"""What a measurement ran on: GPU, driver, CUDA, library versions, and the allocator's mode as the allocator
itself reports it.

`describe` asks the device and so initializes CUDA: it runs in a case's own process, never in the parent that
cases are forked from.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from memplan.planner.tables.errors import UsageError
from memplan.profiler.nvml import driver

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
INSTALL = "pip install 'memplan[profile]'"
STUB, STUB_MARK = "stub", "(stub)"
"""The driver of a dry run's record, and the end of its GPU's name: nothing of it ran on a GPU."""
_ALLOC_NAMES = (
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
)  # torch >= 2.9 reads the first, the older name still works


def versions() -> dict[str, str | None]:
    """Versions of the libraries that decide memory; None where one is not installed."""
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = _said_in_source(name)
    return found


def _said_in_source(name: str) -> str | None:
    """`__version__` as a package's own file spells it: one copied beside others has no metadata. It is not
    imported for that.
    """
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return None
    with contextlib.suppress(OSError, UnicodeDecodeError):
        match = re.search(
            r"""^__version__\s*=\s*["']([^"']+)["']""",
            Path(spec.origin).read_text(encoding="utf-8"),
            re.MULTILINE,
        )
        return match.group(1) if match else None
    return None


def require(names: tuple[str, ...] = ("torch", "transformers", "accelerate")) -> None:
    """UsageError with the exact install line where a library that profiling needs is missing."""
    missing = [name for name in names if versions().get(name, "") is None]
    if missing:
        raise UsageError(f"profiling needs {', '.join(missing)}, not installed here: {INSTALL}")


def require_device(device: str) -> None:
    """UsageError where `device` cannot be used by this process. Initializes CUDA."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        why = "this torch is a CPU build" if torch.version.cuda is None else "torch sees none"
        raise UsageError(
            f"no CUDA GPU here ({why}): use --device cpu to measure on the CPU's allocator, or memplan plan "
            "to predict"
        )


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
        return {
            **common,
            "machine": processor(),
            "torch_threads": threads,
            "memory_bytes": _host_memory(),
            "allocator": None,
        }
    require_device(device)
    gpu, properties = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    return {
        **common,
        "gpu": gpu,
        "capability": list(torch.cuda.get_device_capability()),
        "multiprocessors": properties.multi_processor_count,
        "total_bytes": total,
        "used_at_start_bytes": total - free,  # by this process's context and by others
        "driver": STUB if gpu.endswith(STUB_MARK) else driver(),
        "cuda": torch.version.cuda,
        "allocator": allocator(),
        "cublas_workspace_config": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


def allocator() -> dict[str, Any]:
    """The CUDA caching allocator's effective settings, read from its own snapshot (an environment variable
    may have come too late).
    """
    import torch

    settings = {
        key: _plain(value)
        for key, value in torch.cuda.memory._snapshot().get("allocator_settings", {}).items()
    }
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
    """Choose the allocator's mode for this process, before anything is allocated. Initializes no CUDA.

    torch 2.11 reads PYTORCH_CUDA_ALLOC_CONF before PYTORCH_ALLOC_CONF (c10/cuda/CUDAAllocatorConfig.h
    instance): the older name goes. The setter works where the environment was read already; what came of it
    is read from the allocator (`allocator`).
    """
    import torch

    wanted = f"expandable_segments:{mode == 'expandable'}"
    os.environ.pop("PYTORCH_CUDA_ALLOC_CONF", None)
    os.environ["PYTORCH_ALLOC_CONF"] = wanted
    with contextlib.suppress(AttributeError, RuntimeError):
        torch._C._accelerator_setAllocatorSettings(wanted)


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


def available_bytes() -> int | None:
    """Host memory that can be had without swapping (Linux: MemAvailable); None where the system does not
    say.
    """
    with (
        contextlib.suppress(OSError, ValueError, IndexError),
        open("/proc/meminfo", encoding="ascii") as handle,
    ):
        for line in handle:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)
