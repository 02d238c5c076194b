"""Loading and the training step apart: which of the two decides that a run does not fit, and whether the
other would.
"""

from __future__ import annotations

from memplan.planner.answers.verdict import UNCOUNTED, Word, margin, not_modelled
from memplan.planner.prediction import Parts, Prediction
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.units import gib

LOAD = "load_peak"


def parts(prediction: Prediction, gpu: Gpu) -> Parts | None:
    """The verdicts of loading alone and of the step alone on a GPU; None where something is not counted, or
    nothing is loaded. No replay.

    The part that is the peak has its predicted reserved bytes. Of the other only its tensors are known
    apart (what loading reserved is still there in the step): it has them, and where the run was replayed what
    fragmentation takes beside them at the P95 (`UNCOUNTED`), but no more than the whole run reserves. What
    several GPUs share is not replayed: as in its verdict, its tensors are what it needs.
    """
    load = next((m.allocated_bytes for m in prediction.moments if m.moment == LOAD), None)
    if load is None or prediction.not_modelled or any(not_modelled(prediction, gpu)):
        return None
    step, peak = prediction.step_peak.allocated_bytes, prediction.peak
    four_bit = prediction.setup.quant_type in ("nf4", "fp4")
    replayed = prediction.survival is not None or prediction.smallest_capacity_bytes is not None
    share = 1 + replayed * UNCOUNTED["4-bit base" if four_bit else "others"]
    off = margin(prediction)

    def part(allocated: int, decides: bool) -> tuple[Word, int]:
        reserved = peak.reserved_bytes if decides else min(peak.reserved_bytes, round(allocated * share))
        room = gpu.usable_bytes - gpu.context_bytes
        if reserved * (1 + off) <= room:
            return "fits", reserved + gpu.context_bytes
        word: Word = "no" if allocated * (1 - off) > room else "tight"
        return word, reserved + gpu.context_bytes

    loads, steps = part(load, peak.moment == LOAD), part(step, peak.moment != LOAD)
    return Parts(loads[0], steps[0], loads[1], steps[1])


def deciding(found: Parts | None) -> str:
    """In a sentence, where one part alone decides and the other fits; "" elsewhere."""
    if found is None or found.decided_by not in ("load", "step"):
        return ""
    if found.decided_by == "load":
        return f"loading ({gib(found.load_bytes)}); the training step alone, {gib(found.step_bytes)}, fits"
    return f"the training step; loading alone, {gib(found.load_bytes)}, fits"
