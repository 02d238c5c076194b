"""torch's out-of-memory messages of every version, and the traceback around them: what was asked, what was
held, at which moment.

The wording changed often (torch 0.4 to 2.15, CUDA, ROCm, XPU, MPS and the host); each form is a row of FORMS,
its numbers are named groups. What a message does not say stays None. Sizes are bytes; torch's own units are
binary (KiB, MiB, GiB), and MPS's too, which it writes KB, MB and GB (torch 2.13 aten/src/ATen/mps/
MPSAllocator.h, format_size divides by 1024).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from memplan.planner.answers.oom_log import plain
from memplan.planner.tables.errors import UsageError, shorten
from memplan.planner.tables.units import BY_LOWER

SCHEMA = "memplan.oom/1"
MOST_ASKED = 2**64
"""A request that has overflowed may be as large as a 64-bit number."""
MOST_HELD = 2**44
"""16 TiB: no GPU has as much."""
UNITS = {"bytes": 1, **BY_LOWER}


def _size(name: str) -> str:
    return rf"(?P<{name}>[0-9]{{1,999}}(?:\.[0-9]{{1,99}})?\s?(?:bytes|[KMG]iB|[KMG]B))"


_ASKED = r"Tried to allocate " + _size("asked")
_DEVICE = r"(?P<device>CUDA|HIP|XPU|NPU) out of memory\.\s+"
_MODERN = (
    _DEVICE + _ASKED,
    r"\.\s+GPU (?P<gpu>\d{1,6}) has a total capac?i?ty of " + _size("capacity"),
    r"(?: of which " + _size("free") + r" is free)?\.?\s*",
    r"(?P<others>(?:Process \d+ has [0-9.]+ (?:bytes|[KMG]iB) memory in use\.\s*)*)",
    r"(?:Including non-PyTorch memory, this process has " + _size("in_use") + r" memory in use\.\s*)?",
    r"(?:" + _size("allowed") + r" allowed;\s*)?",
    r"Of the allocated memory " + _size("allocated") + r" is allocated by PyTorch,",
    r"(?: with " + _size("private") + r" allocated in private pools \(e\.g\., (?:CUDA|HIP) Graphs\),)?",
    r" and " + _size("unallocated") + r" is reserved by PyTorch but unallocated",
)
_CLASSIC = (
    r"(?:(?P<device>CUDA|HIP|XPU|NPU) out of memory\.\s+)?" + _ASKED,
    r" \((?:GPU|NPU|XPU) (?P<gpu>\d{1,6}); " + _size("capacity") + r" total capacity; ",
    _size("allocated") + r" already allocated; (?:" + _size("active") + r" current active; )?",
    r"(?:" + _size("free") + r" free; )?",
    r"(?:" + _size("allowed") + r" allowed; )?",
)
_MPS = (
    r"(?P<device>MPS) backend out of memory \(MPS allocated: " + _size("allocated"),
    r", other allocations: " + _size("other") + r", max allowed: " + _size("capacity") + r"\)\.\s+" + _ASKED,
)
_DRIVER = (
    r"(?P<device>CUDA|HIP) error: out of memory|cuda runtime error \(2\)\s*: out of memory",
    r"|CUDA driver error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED",
    r"|cudaErrorMemoryAllocation|NCCL[^\n]{0,120}out of memory",
)
_TEXTS = {
    "torch 2.1 and later": _MODERN,
    "torch 1.5 to 2.0": (*_CLASSIC, _size("reserved") + r" reserved in total by PyTorch"),
    "torch 1.0 to 1.4": (*_CLASSIC, _size("cached") + r" cached"),
    "MPS": _MPS,
    "host memory": (
        r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory): you tried to allocate "
        r"(?P<asked>\d{1,999}(?: bytes)?)",
    ),
    "shortened message": (_DEVICE + _ASKED,),
    "driver, outside the caching allocator": _DRIVER,
    "bitsandbytes, outside torch's allocator": (r"Error out of memory at line \d+ in file \S{1,200}",),
    "Linux OOM killer, host memory": (
        r"Out of memory: Killed process \d+|oom-kill:|\bOOMKilled\b|exitcode ?:? ?-9\b",
        r"|\bline \d{1,9}: {1,4}\d{1,9} Killed\b|(?m:^Killed\r?$)|died with <Signals\.SIGKILL: 9>",
    ),
    "no sizes": (r"(?:torch\.(?:cuda\.)?)?OutOfMemoryError\b|\bCUDA out of memory\b",),
}
FORMS = {
    name: re.compile(re.sub(r" (?![?*+{])", r"\\s+", "".join(parts)), re.IGNORECASE | re.DOTALL)
    for name, parts in _TEXTS.items()
}
"""Every form, the most telling first. A terminal or a log may break a line where a message has a blank."""

NUMBERS = (
    "asked",
    "active",
    "capacity",
    "free",
    "in_use",
    "allowed",
    "allocated",
    "private",
    "unallocated",
    "reserved",
    "cached",
    "other",
)

MOMENTS: tuple[tuple[str, str], ...] = (
    (
        "save",
        r"\bsave_(?:model|pretrained|checkpoint|state_dict)\b|_save_checkpoint|full_state_dict|merge_and_unload"
        r"|Failed to clone\(\) tensor",
    ),
    ("evaluate", r"\bevaluation_loop\b|\bprediction_step\b|\bin evaluate\b"),
    (
        "optimizer_step",
        r"optim(?:izer)?s?/[\w/]*\.py\"?, line \d+, in "
        r"(?:step|_init_group|_init_state|init_state|update_step|_multi_tensor\w*|_fused\w*)"
        r"|optimizer\.step\(|_foreach_\w+\(|_engine_step|lr_scheduler_step",
    ),
    (
        "backward",
        r"\bin backward\b|\.backward\(|Variable\._execution_engine\.run_backward|autograd/graph\.py",
    ),
    (
        "load",
        r"\bfrom_pretrained\b|_load_\w*(?:state_dict|model|pretrained)|core_model_loading|caching_allocator_warmup"
        r"|\bdispatch_model\b|get_peft_model"
        r"|prepare_model_for_kbit_training|in _apply\b|\bparam_applied\b|\.cuda\(|model\.to\(",
    ),
    ("forward", r"\bin forward\b|\bmodel\(\*\*|compute_loss|\b_call_impl\b|modeling_\w+\.py"),
)
"""Moments by what a traceback's frames say; the first that matches wins: a checkpointed backward runs
forwards too.
"""

PLACES: tuple[tuple[str, str], ...] = (
    (
        "the loss over the vocabulary",
        r"loss_utils\.py|cross_entropy|log_softmax|lm_head|convert_outputs_to_fp32|convert_to_fp32",
    ),
    ("attention", r"scaled_dot_product_attention|eager_attention_forward|_flash_attention|softmax\("),
    ("quantized weights", r"bitsandbytes|dequantize|quantize_4bit"),
    ("adapters", r"peft/tuners|lora_[AB]"),
    ("the MLP", r"\bmlp\b|gate_proj|up_proj|down_proj|act_fn"),
    ("embeddings", r"embedding\("),
)


@dataclass(frozen=True, slots=True)
class OutOfMemoryMessage:
    """One out-of-memory failure. Sizes in bytes; None where the message does not say."""

    form: str
    device: str
    gpu: int | None
    asked: int | None
    capacity: int | None
    free: int | None
    in_use: int | None
    allocated: int | None
    reserved: int | None
    other_processes: int | None
    ranks: int | None  # how many processes the log shows, where it shows any
    allowed: int | None
    moment: str | None
    place: str | None
    failures: int  # how many such messages the log has
    garbled: str | None = None  # a size that no GPU has: what a cut or joined log leaves; it counts as unsaid

    @property
    def held(self) -> int | None:
        """What the process held of the device when it failed: its own count where given, else what torch had
        reserved.
        """
        if self.in_use is not None:
            return self.in_use
        return self.reserved

    @property
    def cached(self) -> int | None:
        """Reserved by torch and not allocated to any tensor: fragmentation, if it did not serve the
        request.
        """
        return (
            None
            if self.reserved is None or self.allocated is None
            else max(0, self.reserved - self.allocated)
        )

    @property
    def outside(self) -> int | None:
        """What of the device neither torch in this process nor the free part explains: context, libraries and
        other processes.
        """
        if None in (self.capacity, self.free, self.reserved):
            return None
        return max(0, self.capacity - self.free - self.reserved)  # type: ignore[operator]

    @property
    def needed(self) -> int | None:
        """The smallest device peak that would have served this request as things stood; the run may have gone
        on to need more.
        """
        return None if self.held is None or self.asked is None else self.held + self.asked

    def to_document(self) -> dict[str, Any]:
        """The JSON of `oom`: what the message said, in bytes."""
        return {
            "schema": SCHEMA,
            "form": self.form,
            "device": self.device,
            "gpu": self.gpu,
            "asked_bytes": self.asked,
            "capacity_bytes": self.capacity,
            "free_bytes": self.free,
            "in_use_bytes": self.in_use,
            "allocated_bytes": self.allocated,
            "reserved_bytes": self.reserved,
            "cached_bytes": self.cached,
            "outside_bytes": self.outside,
            "allowed_bytes": self.allowed,
            "other_processes_bytes": self.other_processes,
            "ranks": self.ranks,
            "needed_bytes": self.needed,
            "moment": self.moment,
            "place": self.place,
            "failures": self.failures,
            "garbled": self.garbled,
        }


def read_oom(log: str) -> OutOfMemoryMessage:
    """The first out-of-memory failure of a log. UsageError where there is none."""
    text = plain(log)
    found = list(_matches(text))
    if not found:
        raise UsageError(
            "no out-of-memory error in this log: expected one from PyTorch, such as 'CUDA out of "
            "memory. Tried to allocate 2.00 GiB ...'"
        )
    form, match = min(found, key=lambda pair: (list(FORMS).index(pair[0]), pair[1].start()))
    telling = [other for other in found if other[0] == form]
    form, match = telling[0]
    groups = match.groupdict()
    binary = form == "MPS"
    sizes = {name: _believed(name, groups.get(name), binary) for name in NUMBERS}
    garbled = [groups[name] for name, size in sizes.items() if size is None and groups.get(name)]
    before = text[max(0, match.start() - 20_000) : match.start()]
    frames = before[max(before.rfind("Traceback (most recent call last)"), 0) :]
    reserved = _reserved(sizes)
    others = [
        _believed("others", size) or 0
        for size in re.findall(
            r"Process\s+\d+\s+has\s+([0-9.]+\s(?:bytes|[KMG]iB))", groups.get("others") or ""
        )
    ]
    own, others = _own_process(sizes, reserved, others)
    moment = _first(MOMENTS, frames)
    return OutOfMemoryMessage(
        form=form,
        device=(groups.get("device") or ("host" if "host" in form else "CUDA"))
        .upper()
        .replace("HOST", "host"),
        gpu=int(groups["gpu"]) if groups.get("gpu") else None,
        asked=sizes["asked"],
        capacity=sizes["capacity"],
        free=sizes["free"],
        in_use=sizes["in_use"] if own is None else own,
        allocated=sizes["allocated"],
        reserved=reserved,
        other_processes=sum(others) if others else None,
        ranks=_ranks(log),
        allowed=sizes["allowed"],
        moment=moment,
        place=None if moment == "save" else _first(PLACES, _innermost(frames)),
        failures=len(telling),
        garbled=shorten(garbled[0]) if garbled else None,
    )


def _matches(text: str) -> Iterator[tuple[str, re.Match[str]]]:
    for name, pattern in FORMS.items():
        for match in pattern.finditer(text):
            yield name, match


def _believed(name: str, text: str | None, binary: bool = False) -> int | None:
    """The bytes that a message names; None where no GPU has as much: the message is garbled."""
    size = _bytes(text, binary)
    most = MOST_ASKED if name == "asked" else MOST_HELD
    return None if size is None or size > most else size


def _own_process(
    sizes: dict[str, int | None], reserved: int | None, listed: list[int]
) -> tuple[int | None, list[int]]:
    """(what this process holds, what others hold). In a container torch cannot tell its own process from
    others and lists it among them: it is there where all of them and what torch reserved exceed the capacity,
    and is the smallest that can hold what torch reserved.
    """
    capacity = sizes["capacity"]
    if sizes["in_use"] is not None or reserved is None or capacity is None:
        return None, listed
    able = sorted(size for size in listed if size >= reserved)
    if not able or sum(listed) + reserved <= capacity - (sizes["free"] or 0):
        return None, listed
    rest = list(listed)
    rest.remove(able[0])
    return able[0], rest


def _ranks(log: str) -> int | None:
    """How many ranks a log speaks of: the highest one that writes, or what a launch line in it starts."""
    tail = log
    wrote = [
        int(one)
        for one in re.findall(r"\[rank ?(\d{1,4})\]|local_rank ?: ?(\d{1,4})", tail)
        for one in one
        if one
    ]
    said = re.findall(r"--(?:nproc[-_]per[-_]node|num_processes|num_gpus)[= ](\d{1,4})\b", tail)
    counts = [max(wrote) + 1] if wrote else []
    counts += [int(number) for number in said]
    return max(counts) if counts and max(counts) > 1 else None


def _bytes(text: str | None, binary: bool = False) -> int | None:
    if not text:
        return None
    match = re.fullmatch(r"([0-9]+)(\.[0-9]+)?\s?([A-Za-z]*)", text.strip())
    if match is None:
        return None
    unit = match.group(3).lower() or "bytes"
    scale = UNITS[f"{unit[0]}ib" if binary and unit[0] in "kmg" else unit]
    return int(match.group(1)) * scale + round(float(match.group(2) or 0) * scale)


def _reserved(sizes: dict[str, int | None]) -> int | None:
    if sizes["reserved"] is not None:
        return sizes["reserved"]
    for extra in ("unallocated", "cached", "other"):
        if sizes["allocated"] is not None and sizes[extra] is not None:
            return sizes["allocated"] + sizes[extra]  # type: ignore[operator]
    return None


def _first(table: tuple[tuple[str, str], ...], text: str) -> str | None:
    return next((name for name, pattern in table if re.search(pattern, text)), None)


def _innermost(frames: str) -> str:
    """The last frames of a traceback, where the request was made."""
    return "\n".join(frames.splitlines()[-8:])
