"""Loading, the training step and what follows it (evaluation, saving, merging) apart: which of them decides
that a run does not fit, and whether the others would.
"""

from __future__ import annotations

from memplan.planner.answers.verdict import UNCOUNTED, Word, margin, not_modelled
from memplan.planner.prediction import Parts, Prediction
from memplan.planner.tables.components import AFTER
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.units import gib

LOAD = "load_peak"
SAID = {"load": "loading", "evaluate": "the evaluation", "save": "saving", "merge": "the merge"}
"""What is said of a part that decides; of the training step nothing, which is the ordinary case."""


def parts(prediction: Prediction, gpu: Gpu) -> Parts | None:
    """The verdicts of loading alone, of the step alone and of each moment after it alone on a GPU; None where
    something is not counted, or nothing is loaded. No replay.

    The part that is the peak has its predicted reserved bytes. Of the others only their tensors are known
    apart (what loading reserved is still there in the step): they have them, and where the run was replayed
    what fragmentation takes beside them at the P95 (`UNCOUNTED`), but no more than the whole run reserves.
    Where nothing is replayed (ZeRO), as in its verdict, tensors are what a part needs.
    """
    sizes = {m.moment: m.allocated_bytes for m in prediction.moments}
    load, after = sizes.get(LOAD), [moment for moment in AFTER if moment in sizes]
    if load is None or prediction.not_modelled or any(not_modelled(prediction, gpu)):
        return None
    step, peak = prediction.step_peak.allocated_bytes, prediction.peak
    four_bit = prediction.setup.quant_type in ("nf4", "fp4")
    replayed = prediction.survival is not None or prediction.smallest_capacity_bytes is not None
    share = 1 + replayed * UNCOUNTED["4-bit base" if four_bit else "others"]
    off = margin(prediction)

    def part(allocated: int, known: int | None) -> tuple[Word, int]:
        reserved = min(peak.reserved_bytes, round(allocated * share)) if known is None else known
        room = gpu.usable_bytes - gpu.context_bytes
        if reserved * (1 + off) <= room:
            return "fits", reserved + gpu.context_bytes
        word: Word = "no" if allocated * (1 - off) > room else "tight"
        return word, reserved + gpu.context_bytes

    # what is reserved only grows: what was reserved before the moments that follow the step is known
    whole = {LOAD: None, **dict.fromkeys(after, prediction.step_peak.reserved_bytes)}
    loads = part(load, peak.reserved_bytes if peak.moment == LOAD else None)
    steps = part(step, whole.get(peak.moment, peak.reserved_bytes))
    follows = {
        moment: part(sizes[moment], peak.reserved_bytes if peak.moment == moment else None)
        for moment in after
    }
    return Parts(loads[0], steps[0], loads[1], steps[1], follows)


def deciding(found: Parts | None) -> str:
    """In a sentence, where loading or a moment after training alone decides and the training step fits; ""
    elsewhere, the ordinary case that the step decides included.
    """
    which = found.decided_by if found is not None else None
    if found is None or which not in SAID:
        return ""
    part = f"{SAID[which]} ({gib(found.load_bytes)})" if which == "load" else SAID[which]
    return f"{part}; the training step alone, {gib(found.step_bytes)}, fits"


def headline(found: Parts | None) -> str:
    """The same in the words of a first line."""
    which = found.decided_by if found is not None else None
    return f"training fits, {SAID[which]} does not" if which in SAID else ""
