"""The verdict: fits, tight or no, of one prediction for one card.

trace    fits: the predicted device peak is within the card; no: even the smallest capacity that survives the allocator's replay is not;
         tight: between (the allocator would release its cache and retry, or needs expandable segments).
formula  has no replay: the band is its recorded error (the worst over recorded runs, of the allocated or the device peak) on both
         sides of its device peak. Without recorded runs there is no band and the comparison is exact, which its evidence says.
"""

from __future__ import annotations

from typing import Literal

from planner.breakdown import GpuVerdict, Prediction
from planner.gpus import Gpu

Word = Literal["fits", "tight", "no"]


def device_bytes(prediction: Prediction, gpu: Gpu) -> int:
    """Predicted device peak on this card, bytes: what the allocator reserves plus this card's CUDA context."""
    return prediction.peak.reserved_bytes + gpu.context_bytes


def band(prediction: Prediction, gpu: Gpu) -> tuple[int, int]:
    """(least, most) device bytes, between which a card's capacity makes the verdict tight."""
    device = device_bytes(prediction, gpu)
    if prediction.smallest_capacity_bytes is not None:
        survive = [prediction.smallest_capacity_bytes, *filter(None, [expandable_capacity(prediction)])]
        return min(min(survive) - prediction.peak.context_bytes + gpu.context_bytes, device), device
    slack = round(prediction.peak.allocated_bytes * prediction.accuracy.margin)
    return device - slack, device + slack


def expandable_capacity(prediction: Prediction) -> int | None:
    """A card's size in bytes that survives with expandable segments; the trace looks where the card it names is too small without."""
    return prediction.extra.get("expandable_capacity_bytes")


def needs_expandable(prediction: Prediction, gpu: Gpu) -> bool:
    """Whether a card holds the run with expandable segments only: release-and-retry does not save it in native mode."""
    smallest = prediction.smallest_capacity_bytes
    return (smallest is not None and expandable_capacity(prediction) is not None
            and smallest - prediction.peak.context_bytes + gpu.context_bytes > gpu.usable_bytes)  # fmt: skip


def judge(prediction: Prediction, gpu: Gpu) -> GpuVerdict:
    """fits / tight / no of `prediction` on `gpu`, with headroom = usable - predicted device bytes (negative where it does not fit)."""
    least, most = band(prediction, gpu)
    word: Word = "fits" if most <= gpu.usable_bytes else "no" if least > gpu.usable_bytes else "tight"
    return GpuVerdict(gpu.name, gpu.usable_bytes, word, gpu.usable_bytes - device_bytes(prediction, gpu))
