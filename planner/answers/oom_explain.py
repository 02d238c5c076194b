"""An out-of-memory message explained: what happened, in sentences, and which GPUs would have held it."""

from __future__ import annotations

from memplan.planner.answers.oom import OutOfMemoryMessage
from memplan.planner.tables.gpus import Gpu, gpus
from memplan.planner.tables.units import gib


def explain(oom: OutOfMemoryMessage, checkpoint_bytes: int | None = None) -> list[str]:
    """What happened, sentence by sentence, from the numbers that the message has; `checkpoint_bytes`: the
    model that each rank may hold on the host, where it is known.
    """
    lines = []
    if oom.device == "host":
        return _host(oom, checkpoint_bytes)
    if "bitsandbytes" in oom.form:
        return [
            "bitsandbytes' own request failed: paged optimizer states, or a buffer outside torch's "
            "allocator; the message gives no sizes"
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
    elif oom.garbled is None:
        lines.append("the message gives neither sizes nor a location")
    if oom.garbled is not None:
        lines.append(f"not used: {oom.garbled}, more than any GPU has: is the log whole?")
    if oom.allocated is not None and oom.reserved is not None:
        lines.append(f"tensors used {gib(oom.allocated)} of the {gib(oom.reserved)} reserved by PyTorch")
    if over := shared_memory(oom):
        lines.append(
            f"{gib(over)} more were allocated than the GPU has: the driver put them in the host's memory "
            "(shared GPU memory on Windows), which is slow; switch CUDA's sysmem fallback off to fail where "
            "it begins"
        )
    elif oom.asked is not None and oom.cached is not None and oom.cached >= oom.asked:
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
    if oom.device == "MPS":
        lines.append(
            "memory is shared with the system: a smaller batch or sequence, or "
            "PYTORCH_MPS_HIGH_WATERMARK_RATIO with care"
        )
    if oom.needed is not None:
        lines.append(f"needed at least {gib(oom.needed)}")
    return lines


def _host(oom: OutOfMemoryMessage, checkpoint_bytes: int | None) -> list[str]:
    """Advice for the host's memory; every rank that loads the whole model holds a copy of its own."""
    lines = ["the host ran out of memory, not the GPU"]
    ranks, each = oom.ranks, checkpoint_bytes
    if ranks is not None and each is not None:
        lines.append(
            f"{ranks} ranks x {gib(each)} of model are {gib(ranks * each)} where each rank loads it whole"
        )
    elif ranks is not None:
        lines.append(f"{ranks} ranks: where each loads the whole model, the host holds it {ranks} times")
    elif each is not None:
        lines.append(f"each rank that loads the whole model holds {gib(each)} of it on the host")
    else:
        lines.append("each rank that loads the whole model holds a copy of it on the host: ranks x model")
    lines.append(
        "load on one rank only (cpu_ram_efficient_loading), use fewer data-loader workers, and keep "
        "offloaded parameters and optimizer states elsewhere"
    )
    return lines


def shared_memory(oom: OutOfMemoryMessage) -> int | None:
    """Bytes that torch holds beyond the GPU's capacity, which a driver that spills to the host allows."""
    if oom.device != "CUDA" or oom.reserved is None or oom.capacity is None or oom.reserved <= oom.capacity:
        return None
    return oom.reserved - oom.capacity


SAME_GPU = 0.05
"""Drivers report the capacity of one GPU up to this share apart (23.5 to 24 GiB on a 4090): within it a GPU
is no larger than the one that failed.
"""


def cards_that_hold(oom: OutOfMemoryMessage, most: int = 3) -> list[Gpu]:
    """The smallest common GPUs that would have served the request as things stood and are larger than the one
    that failed; empty where the message gives no sizes, or is of another maker's device.
    """
    if oom.needed is None or oom.device in ("MPS", "NPU", "XPU"):
        return []
    least = max(oom.needed, round((oom.capacity or 0) * (1 + SAME_GPU)))
    return sorted(
        (gpu for gpu in gpus().values() if gpu.common and gpu.usable_bytes >= least),
        key=lambda gpu: gpu.usable_bytes,
    )[:most]
