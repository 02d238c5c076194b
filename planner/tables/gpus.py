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
from memplan.planner.tables.units import MIB, gib, parse_size

UNVERIFIED = ("amd", "apple")
"""Vendors whose GPUs nobody has measured for this project: their capacities and kernels are unverified."""
GROUPED_MM = (8, 0)
"""The compute capability from which on transformers multiplies experts by torch's grouped_mm (transformers
5.24 integrations/moe.py _can_use_grouped_mm), below it by a loop of its own.
"""
SOLD = "sold"
"""The kind of a GPU that is named by the size that it is sold with."""
_SOLD_AS = ("datacenter", "workstation", "consumer")
_SERIES = ("rtx-", "gtx-", "rx-", "jetson-", "apple-")
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


def first_alike(gpu: Gpu) -> str | None:
    """The table's first GPU of the same compute capability (itself where it has none), None where the
    capability is not known.
    """
    return None if gpu.capability is None else _first_by_capability().get(gpu.capability, gpu.name)


@cache
def _first_by_capability() -> dict[tuple[int, int], str]:
    return {gpu.capability: gpu.name for gpu in reversed(gpus().values()) if gpu.capability is not None}


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
            for prefix in _SERIES:
                if word.startswith(prefix):
                    short.setdefault(_plain(word.removeprefix(prefix)), set()).add(gpu.name)
    return names | {
        word: min(owners) for word, owners in short.items() if len(owners) == 1 and word not in names
    }


def _plain(text: str) -> str:
    """A GPU's name without case, separators and vendors' words: 'NVIDIA GeForce RTX 4090' -> 'rtx4090'."""
    words = re.split(r"[\s_\-/]+", text.strip().lower())
    joined = "".join(word for word in words if word not in _NOISE)
    return re.sub(r"(?<=\d)gi?$", "gb", joined)  # "a100 40g"


def find_gpu(text: str) -> Gpu:
    """The GPU of that name or alias, this machine's (`local`), a GPU sold with so many GB (24, 24G, 24GB),
    or any other size such as 23.5GiB as a budget. Raises UsageError.
    """
    if text.strip().lower() == "local":
        return local_gpu()
    name = _names().get(_plain(text))
    if name is not None:
        return gpus()[name]
    found = _sold(text) or _with_its_size(text) or _apple(text)
    if found is not None:
        return found
    counted = re.fullmatch(r"\s*(\d{1,4})\s*[x*\u00d7]\s*(\S.*)", text[:200], re.IGNORECASE)
    if counted:
        one = find_gpu(counted.group(2)).name
        raise UsageError(f"GPU '{shorten(text)}': write --gpu {one} --gpus {int(counted.group(1))}")
    plain = _plain(text)
    several = [name for name in gpus() if plain and any(short.startswith(plain) for short in _short(name))]
    if 2 <= len(several) <= 6:
        raise UsageError(f"GPU '{shorten(text)}' could be {' or '.join(several)}: name one of them")
    if re.match(r"\s*[0-9.]+\s*[kmgt]?i?b?\s*$", text, re.IGNORECASE):
        return budget(text)
    raise unknown("GPU", text, gpus(), "(memplan list gpus shows all; a size such as 23.5GiB is a budget)")


def said_of(gpu: Gpu) -> str:
    """What the output says of a GPU that is named by a size alone; empty for every other."""
    return gpu.source if gpu.kind == SOLD else ""


def _short(name: str) -> tuple[str, ...]:
    """The plain forms of a card's name, with and without the series' word in front."""
    return tuple({_plain(name), *(_plain(name.removeprefix(word)) for word in _SERIES)})


def _sold(text: str) -> Gpu | None:
    """A GPU sold with so many GB, of the smallest usable size of those in the table; memory that is shared
    with the operating system (boards, Apple) is not sold as a GPU's.
    """
    match = re.fullmatch(r"\s*(\d{1,4}(?:\.\d+)?)\s*(?:gb?)?\s*", text, re.IGNORECASE)
    size = float(match.group(1)) if match else None
    sold = [g for g in gpus().values() if g.marketing_gb == size and g.kind in _SOLD_AS]
    if not sold:
        return None
    least = min(gpu.usable_bytes for gpu in sold)
    like = max((gpu for gpu in sold if gpu.usable_bytes == least), key=lambda gpu: gpu.capability or (0, 0))
    context = _file()["context"]
    said = f"a GPU sold as {size:g} GB, of the smallest usable size: {gib(least)}, such as {like.name}"
    return Gpu(f"{size:g}gb", least, context["bytes"], said, context["source"], SOLD, size)


def _with_its_size(text: str) -> Gpu | None:
    """'rtx 4090 24gb': a card with the size that it is sold with. Raises UsageError where it is another."""
    match = re.fullmatch(r"(\S.*?)[\s_-]*(?<!\d)(\d{1,3})\s*gi?b?", text.strip()[:100], re.IGNORECASE)
    name = _names().get(_plain(match.group(1))) if match else None
    if match is None or name is None:
        return None
    gpu = gpus()[name]
    if gpu.marketing_gb != int(match.group(2)):
        raise UsageError(f"{name} is sold with {gpu.marketing_gb:g} GB, not {match.group(2)} GB")
    return gpu


def _apple(text: str) -> Gpu | None:
    """An Apple chip with its memory ('m3 max 36gb'), by the rule of those in the table. Raises UsageError
    where the memory is not said: a chip is sold with many sizes.
    """
    match = re.fullmatch(r"(?:apple)?(m[1-9])(pro|max|ultra)?(\d{1,3})?(?:gb)?", _plain(text))
    if match is None:
        return None
    chip = "-".join(part for part in match.groups()[:2] if part)
    if match.group(3) is None:
        raise UsageError(
            f"GPU '{shorten(text)}' is sold with many sizes of memory: write yours, such as --gpu {chip}-64gb"
        )
    size, context = int(match.group(3)), _file()["context"]
    usable = size * 10**9 * 75 // 100
    name = f"apple-{chip}-{size}gb"
    return Gpu(name, usable, context["bytes"], "derived-unified", context["source"], "apple", size)


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
