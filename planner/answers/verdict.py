"""The verdict: fits, tight or no, of one prediction for one GPU; every command asks `judge`.

low   the smallest capacity that survives the replay through the caching allocator, which releases its cache
      and asks again (with expandable segments too, where that was looked at);
high  what the allocator reserves where nothing bounds it.
Both with the GPU's CUDA context, and widened by the engine's error of reserved (MARGIN, or what recorded runs
say where that is more). usable >= high: fits; usable < low: no; between: tight.

A setup that several GPUs share is not replayed: low and high are then its estimate, and `close_calls` says
beside a `fits` what fragmentation could undo.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from memplan.planner.inputs.setup import Setup
from memplan.planner.prediction import GpuVerdict, Prediction
from memplan.planner.tables.gpus import Gpu

Word = Literal["fits", "tight", "no"]

UNCOUNTED = {"others": 0.199, "4-bit base": 0.224}
"""What the native allocator reserves beyond its tensors, as a share of them, where nothing is replayed: P95
of seeded traces of catalog models of 1 to 80 billion parameters, 99 with 16- or 32-bit bases and 36 with
4-bit ones; medians 4.3 and 6.6 %, the worst 36 % in both (`benchmarks/fragmentation.py 140 --seed 2`; torch
2.13, transformers 5.23, bitsandbytes 0.50). It widens no verdict: it decides what is said beside one.
"""

MARGIN = {"formula": 0.04, "trace": 0.0}
"""The P95 error of an engine's reserved bytes, as a share: the formula's against the trace
(`benchmarks/reserved.py`, docs in its table); of the trace, whose reference are GPU runs, what is recorded of
those (`Prediction.accuracy`), none of them our own so far.
"""


def device_bytes(prediction: Prediction, gpu: Gpu) -> int:
    """Predicted device peak on this GPU, bytes: what the allocator reserves plus this GPU's CUDA context."""
    return prediction.peak.reserved_bytes + gpu.context_bytes


def margin(prediction: Prediction) -> float:
    """By which share a prediction's reserved bytes may be off."""
    replayed = prediction.survival is not None or prediction.smallest_capacity_bytes is not None
    return max(prediction.accuracy.margin, MARGIN[prediction.engine] if replayed else 0.0)


def high_bytes(prediction: Prediction, gpu: Gpu) -> int:
    """What a GPU must have so that the run surely fits, bytes: reserved without a bound, widened."""
    return device_bytes(prediction, gpu) + round(prediction.peak.reserved_bytes * margin(prediction))


def low_bytes(prediction: Prediction, gpu: Gpu) -> int:
    """Below what the run surely does not fit, bytes: the smallest capacity that survives, widened. Several
    replays, where the formula has not been asked before.
    """
    survive = prediction.capacity_bytes
    if survive is None:
        survive = prediction.peak.device_bytes
    elif (expandable := expandable_capacity(prediction)) is not None:
        survive = min(survive, expandable)
    bare = min(survive - prediction.peak.context_bytes, prediction.peak.reserved_bytes)
    return bare - round(bare * margin(prediction)) + gpu.context_bytes


def _survives(prediction: Prediction, gpu: Gpu) -> bool:
    """Whether a GPU has `low_bytes`: one replay where the smallest capacity has not been asked for."""
    if prediction.survival is None or prediction.smallest_capacity_bytes is not None:
        return low_bytes(prediction, gpu) <= gpu.usable_bytes
    room = gpu.usable_bytes - gpu.context_bytes
    return prediction.survival.survives(round(room / (1 - margin(prediction))))


def expandable_capacity(prediction: Prediction) -> int | None:
    """A GPU's size in bytes that survives with expandable segments; the trace looks where the GPU it names
    is too small without.
    """
    return prediction.extra.get("expandable_capacity_bytes")


def needs_expandable(prediction: Prediction, gpu: Gpu) -> bool:
    """Whether a GPU holds the run with expandable segments only: release-and-retry does not save it in
    native mode.
    """
    smallest = prediction.smallest_capacity_bytes
    return (
        smallest is not None
        and expandable_capacity(prediction) is not None
        and smallest - prediction.peak.context_bytes + gpu.context_bytes > gpu.usable_bytes
    )


def judge(prediction: Prediction, gpu: Gpu) -> GpuVerdict:
    """fits / tight / no of `prediction` on `gpu`, with headroom = usable - predicted device bytes (negative
    where it does not fit).
    """
    high = high_bytes(prediction, gpu)
    floor = prediction.peak.allocated_bytes * (1 - margin(prediction)) + gpu.context_bytes
    word: Word
    if high <= gpu.usable_bytes:
        word = "fits"
    elif floor > gpu.usable_bytes:  # no capacity below what is allocated survives: nothing to replay
        word = "no"
    else:
        word = "tight" if _survives(prediction, gpu) else "no"
    headroom = gpu.usable_bytes - device_bytes(prediction, gpu)
    return GpuVerdict(
        gpu.name,
        gpu.usable_bytes,
        word,
        headroom,
        high_bytes=high,
        low=lambda: low_bytes(prediction, gpu),
    )


def uncounted(setup: Setup) -> float:
    """The share of its allocated bytes that fragmentation may take of a setup like this one: UNCOUNTED; 0
    with expandable segments.
    """
    return (
        0.0
        if setup.allocator == "expandable"
        else UNCOUNTED["others" if setup.quant_type == "none" else "4-bit base"]
    )


def close_calls(prediction: Prediction, gpus: Iterable[Gpu]) -> str | None:
    """What to know of each card that the formula says `fits` by less than fragmentation commonly takes; None
    where there is none.

    A replay and a recorded error's band count fragmentation already; expandable segments leave next to none.
    """
    if prediction.smallest_capacity_bytes is not None or prediction.survival or prediction.accuracy.margin:
        return None
    rooms = ((gpu.name, gpu.usable_bytes - device_bytes(prediction, gpu), gpu.usable_bytes) for gpu in gpus)
    share = uncounted(prediction.setup)
    least = prediction.peak.allocated_bytes * share
    close = [
        f"{name} within {room / usable:.1%} of usable" for name, room, usable in rooms if 0 <= room < least
    ]
    if not close:
        return None
    confirm = "; confirm with --engine trace" if prediction.setup.parallel == "none" else ""
    return (
        f"fits {', '.join(close)}: the formula does not count fragmentation, which took {share:.0%} of what "
        "is allocated or "
        f"less in 19 of 20 traced setups{confirm}"
    )
