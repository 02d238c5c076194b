"""GPUS: what each GPU really offers, from gpus.json; and `find_gpu`, which also reads this machine's GPU or
takes a size as a budget.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from memplan.planner.tables.errors import UsageError, shorten, unknown
from memplan.planner.tables.units import MIB, parse_size

UNVERIFIED = ("amd", "apple")
"""Vendors whose GPUs nobody has measured for this project: their capacities and kernels are unverified."""
_NOISE = ("nvidia", "geforce", "tesla", "amd", "radeon", "instinct", "graphics", "generation")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or a budget. `usable_bytes`: what one process can hold in all, CUDA context included;
    `source` says how that is known.

    `capability`: CUDA compute capability; `sms`: multiprocessors; `bandwidth_gbs`: 10^9 bytes/s;
    `bf16_tflops`: dense 16-bit rate, vendor's figure; `context_bytes`: the CUDA context. None where not
    known, never 0.
    """

    name: str
    usable_bytes: int
    context_bytes: int
    source: str
    context_source: str
    kind: str = "budget"
    marketing_gb: float | None = None
    capability: tuple[int, int] | None = None
    sms: int | None = None
    bandwidth_gbs: float | None = None
    bf16_tflops: float | None = None
    common: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def verified(self) -> bool:
        """Whether memplan's kernel facts hold for this GPU's vendor at all (NVIDIA); AMD and Apple are
        listed as unverified.
        """
        return self.kind not in UNVERIFIED

    def to_document(self) -> dict[str, Any]:
        """This GPU as `memplan list gpus --json` shows it; sizes are in bytes."""
        return {
            "name": self.name,
            "usable_bytes": self.usable_bytes,
            "context_bytes": self.context_bytes,
            "source": self.source,
            "context_source": self.context_source,
            "kind": self.kind,
            "marketing_gb": self.marketing_gb,
            "capability": list(self.capability) if self.capability else None,
            "sms": self.sms,
            "bandwidth_gbs": self.bandwidth_gbs,
            "bf16_tflops": self.bf16_tflops,
            "verified": self.verified,
            "aliases": list(self.aliases),
        }


@cache
def _file() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(__file__).with_name("gpus.json").read_text(encoding="utf-8"))
    return found


@cache
def gpus() -> dict[str, Gpu]:
    """Every GPU of gpus.json by name, in the file's order."""
    context = _file()["context"]
    unmeasured = {"context_bytes": context["bytes"], "context_source": context["source"]}
    found: dict[str, Gpu] = {}
    for kind, cards in _file()["cards"].items():
        for name, card in cards.items():
            lists = {key: tuple(card[key]) for key in ("capability", "aliases") if key in card}
            found[name] = Gpu(name=name, kind=kind, **{**unmeasured, **card, **lists})
    return found


def __getattr__(name: str) -> dict[str, Gpu]:
    """`GPUS`: the same table, read from the file when first asked for."""
    if name == "GPUS":
        return gpus()
    raise AttributeError(f"module 'memplan.planner.tables.gpus' has no attribute '{name}'")


def explain_source(gpu: Gpu) -> str:
    """Where a GPU's usable bytes come from, as a sentence."""
    sentence = _file()["sources"].get(gpu.source)
    return str(sentence) if sentence else f"total capacity in the out-of-memory message of {gpu.source}"


def context_bytes(name: str | None) -> int:
    """The CUDA context of the GPU of that name; of a GPU that was not measured where none is named."""
    return find_gpu(name).context_bytes if name is not None else int(_file()["context"]["bytes"])


def common_gpus() -> tuple[Gpu, ...]:
    """The GPUs to compare with when none is named, smallest first."""
    return tuple(sorted((gpu for gpu in gpus().values() if gpu.common), key=lambda gpu: gpu.usable_bytes))


@cache
def _names() -> dict[str, str]:
    """Every way to name a GPU -> its name: names and aliases first, then short forms that only one GPU has
    ('4090').
    """
    names = {_plain(word): gpu.name for gpu in gpus().values() for word in (gpu.name, *gpu.aliases)}
    short: dict[str, set[str]] = {}
    for gpu in gpus().values():
        for word in (gpu.name, *gpu.aliases):
            for prefix in ("rtx-", "gtx-", "rx-", "jetson-", "apple-"):
                if word.startswith(prefix):
                    short.setdefault(_plain(word.removeprefix(prefix)), set()).add(gpu.name)
    return names | {
        word: min(owners) for word, owners in short.items() if len(owners) == 1 and word not in names
    }


def _plain(text: str) -> str:
    """A GPU's name without case, separators and vendors' words: 'NVIDIA GeForce RTX 4090' -> 'rtx4090'."""
    words = re.split(r"[\s_\-/]+", text.strip().lower())
    return "".join(word for word in words if word not in _NOISE)


def find_gpu(text: str) -> Gpu:
    """The GPU of that name or alias, this machine's (`local`), or a size such as 23.5GiB as a budget. Raises
    UsageError.
    """
    if text.strip().lower() == "local":
        return local_gpu()
    name = _names().get(_plain(text))
    if name is not None:
        return gpus()[name]
    if re.match(r"\s*[0-9.]+\s*[kmgt]?i?b?\s*$", text, re.IGNORECASE):
        return budget(text)
    several = [name for name in gpus() if _plain(text) and _plain(name).startswith(_plain(text))]
    if 2 <= len(several) <= 6:
        raise UsageError(f"GPU '{shorten(text)}' could be {' or '.join(several)}: name one of them")
    raise unknown("GPU", text, gpus(), "(memplan list gpus shows all; a size such as 23.5GiB is a budget)")


def budget(text: str) -> Gpu:
    """A number of bytes to stay within, as a GPU of no known kind."""
    size = parse_size(text)
    if size < 64 * MIB:
        number = text.strip().rstrip("kmgtibKMGTIB")
        raise UsageError(
            f"GPU budget '{shorten(text)}' is {size:,} bytes: expected at least 64 MiB, such as "
            f"{shorten(number, 20)}GiB"
        )
    context = _file()["context"]
    return Gpu(text.strip(), size, context["bytes"], "a budget given by the user", context["source"])


@cache
def local_gpu() -> Gpu:
    """This machine's first visible GPU, with what is free on it now as usable bytes. Raises UsageError where
    there is none.
    """
    read = _from_nvml() or _from_nvidia_smi()
    if read is None:
        raise UsageError(
            "--gpu local: neither NVML nor nvidia-smi finds a GPU here: name a GPU (memplan list gpus) or "
            "give a size such as 23.5GiB"
        )
    device, free, total = read
    name = _names().get(_plain(device))
    source = f"free now on this machine's {device} ({total} bytes in total)"
    if name is None:
        return replace(budget(f"{free}B"), name=f"local ({device})", source=source, kind="local")
    return replace(gpus()[name], name=f"local ({name})", usable_bytes=free, source=source, kind="local")


def _visible() -> int | str:
    """The first entry of CUDA_VISIBLE_DEVICES (an index or a UUID), 0 where it is not set."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return int(first) if first.isdecimal() else first or 0


def _from_nvml() -> tuple[str, int, int] | None:
    """(device name, free bytes, total bytes) of the first visible GPU from NVML; None where NVML or a GPU is
    missing.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        which = _visible()
        handle = (
            pynvml.nvmlDeviceGetHandleByIndex(which)
            if isinstance(which, int)
            else pynvml.nvmlDeviceGetHandleByUUID(which)
        )
        name = pynvml.nvmlDeviceGetName(handle)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return name if isinstance(name, str) else name.decode(), int(memory.free), int(memory.total)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _from_nvidia_smi() -> tuple[str, int, int] | None:
    """The same from nvidia-smi's CSV, whose sizes are MiB."""
    import subprocess

    command = [
        "nvidia-smi",
        f"--id={_visible()}",
        "--query-gpu=name,memory.free,memory.total",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        name, free, total = done.stdout.strip().splitlines()[0].rsplit(",", 2)
        return name.strip(), int(free) * MIB, int(total) * MIB
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
