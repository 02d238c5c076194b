"""torch's out-of-memory messages of every version, and the traceback around them: what was asked, what was
held, at which moment.

The wording changed often (torch 0.4 to 2.15, CUDA, ROCm, XPU, MPS and the host); each form is a row of FORMS,
its numbers are named groups. What a message does not say stays None. Sizes are bytes; torch's own units are
binary (KiB, MiB, GiB), MPS's are decimal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu, gpus
from memplan.planner.tables.units import gib

SCHEMA = "memplan.oom/1"
MOST_TEXT = 16 * 2**20
UNITS = {"bytes": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def _size(name: str) -> str:
    return rf"(?P<{name}>[0-9]+(?:\.[0-9]+)?\s?(?:bytes|[KMG]iB|[KMG]B))"


_ASKED = r"Tried to allocate " + _size("asked")
_DEVICE = r"(?P<device>CUDA|HIP|XPU) out of memory\.\s+"
_MODERN = (
    _DEVICE + _ASKED,
    r"\.\s+GPU (?P<gpu>\d+) has a total capac?i?ty of " + _size("capacity"),
    r"(?: of which " + _size("free") + r" is free)?\.?\s*",
    r"(?P<others>(?:Process \d+ has [0-9.]+ (?:bytes|[KMG]iB) memory in use\.\s*)*)",
    r"(?:Including non-PyTorch memory, this process has " + _size("in_use") + r" memory in use\.\s*)?",
    r"(?:" + _size("allowed") + r" allowed;\s*)?",
    r"Of the allocated memory " + _size("allocated") + r" is allocated by PyTorch,",
    r"(?: with " + _size("private") + r" allocated in private pools \(e\.g\., (?:CUDA|HIP) Graphs\),)?",
    r" and " + _size("unallocated") + r" is reserved by PyTorch but unallocated",
)
_CLASSIC = (
    r"(?:(?P<device>CUDA|HIP) out of memory\.\s+)?" + _ASKED,
    r" \(GPU (?P<gpu>\d+); " + _size("capacity") + r" total capacity; ",
    _size("allocated") + r" already allocated; " + _size("free") + r" free; ",
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
        r"(?P<asked>\d+(?: bytes)?)",
    ),
    "shortened message": (_DEVICE + _ASKED,),
    "driver, outside the caching allocator": _DRIVER,
    "Linux OOM killer, host memory": (
        r"Out of memory: Killed process \d+|oom-kill:|\bOOMKilled\b|exitcode\s*:?\s*-9\b",
    ),
    "no sizes": (r"(?:torch\.(?:cuda\.)?)?OutOfMemoryError\b|\bCUDA out of memory\b",),
}
FORMS = {name: re.compile("".join(parts), re.IGNORECASE | re.DOTALL) for name, parts in _TEXTS.items()}
"""Every form, the most telling first."""

NUMBERS = (
    "asked",
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
        r"\bsave_(?:model|pretrained|checkpoint|state_dict)\b|_save_checkpoint|full_state_dict|merge_and_unload",
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
    allowed: int | None
    moment: str | None
    place: str | None
    failures: int  # how many such messages the log has

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
            "needed_bytes": self.needed,
            "moment": self.moment,
            "place": self.place,
            "failures": self.failures,
        }


def read_oom(log: str) -> OutOfMemoryMessage:
    """The first out-of-memory failure of a log. UsageError where there is none."""
    text = _plain(log[-MOST_TEXT:])
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
    sizes = {name: _bytes(groups.get(name)) for name in NUMBERS}
    before = text[max(0, match.start() - 20_000) : match.start()]
    frames = before[max(before.rfind("Traceback (most recent call last)"), 0) :]
    reserved = _reserved(sizes)
    others = [
        _bytes(size) or 0
        for size in re.findall(r"Process \d+ has ([0-9.]+ (?:bytes|[KMG]iB))", groups.get("others") or "")
    ]
    return OutOfMemoryMessage(
        form=form,
        device=(groups.get("device") or ("host" if "host" in form else "CUDA"))
        .upper()
        .replace("HOST", "host"),
        gpu=int(groups["gpu"]) if groups.get("gpu") else None,
        asked=sizes["asked"],
        capacity=sizes["capacity"],
        free=sizes["free"],
        in_use=sizes["in_use"],
        allocated=sizes["allocated"],
        reserved=reserved,
        other_processes=sum(others) if others else None,
        allowed=sizes["allowed"],
        moment=_first(MOMENTS, frames),
        place=_first(PLACES, _innermost(frames)),
        failures=len(telling),
    )


def _matches(text: str) -> Iterator[tuple[str, re.Match[str]]]:
    for name, pattern in FORMS.items():
        for match in pattern.finditer(text):
            yield name, match


def _plain(log: str) -> str:
    """A log without colors, rank prefixes and line wraps inside a message."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", log)
    text = re.sub(r"^\[?(?:rank\s?\d+\]?:?|\[?\w+\d+\]:)\s?", "", text, flags=re.MULTILINE)
    return re.sub(
        r"[ \t]*\n[ \t]*(?=(?:GiB|MiB|KiB|is |of which|Of the|Including|by PyTorch|and [0-9]))", " ", text
    )


def _bytes(text: str | None) -> int | None:
    if not text:
        return None
    match = re.fullmatch(r"([0-9.]+)\s?([A-Za-z]*)", text.strip())
    if match is None or match.group(1).count(".") > 1:
        return None
    return round(float(match.group(1)) * UNITS[match.group(2).lower() or "bytes"])


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


def explain(oom: OutOfMemoryMessage) -> list[str]:
    """What happened, sentence by sentence, from the numbers that the message has."""
    lines = []
    if oom.device == "host":
        return [
            "the host ran out of memory, not the GPU: use fewer data-loader workers, "
            "low_cpu_mem_usage, or an optimizer that is not paged"
        ]
    where = f" in {oom.moment.replace('_', ' ')}" if oom.moment else ""
    place = f", at {oom.place}" if oom.place else ""
    if oom.asked is not None:
        lines.append(
            f"requested {gib(oom.asked)}{where}{place}"
            + (f" with {gib(oom.free)} free" if oom.free is not None else "")
        )
    elif where or place:
        lines.append(f"failed{where}{place}; the message gives no sizes")
    else:
        lines.append("the message gives neither sizes nor a location")
    if oom.allocated is not None and oom.reserved is not None:
        lines.append(f"tensors used {gib(oom.allocated)} of the {gib(oom.reserved)} reserved by PyTorch")
    if oom.asked is not None and oom.cached is not None and oom.cached >= oom.asked:
        lines.append(
            f"fragmentation: {gib(oom.cached)} was reserved but unused, with no free block as large "
            f"as {gib(oom.asked)}: PYTORCH_ALLOC_CONF=expandable_segments:True would have satisfied "
            "this request"
        )
    if oom.other_processes:
        lines.append(f"other processes used {gib(oom.other_processes)} of GPU memory")
    elif oom.outside is not None and oom.outside > 2**30:
        lines.append(
            f"{gib(oom.outside)} of GPU memory was in use outside PyTorch: the CUDA context, "
            "libraries and other processes"
        )
    if oom.allowed is not None:
        lines.append(
            f"this process was limited to {gib(oom.allowed)} of GPU memory (set_per_process_memory_fraction)"
        )
    if oom.needed is not None:
        lines.append(f"needed at least {gib(oom.needed)}")
    return lines


def cards_that_hold(oom: OutOfMemoryMessage, most: int = 3) -> list[Gpu]:
    """The smallest common GPUs that would have served the request as things stood; empty where the message
    gives no sizes.
    """
    if oom.needed is None:
        return []
    return sorted(
        (gpu for gpu in gpus().values() if gpu.common and gpu.usable_bytes >= oom.needed),
        key=lambda gpu: gpu.usable_bytes,
    )[:most]
