"""The verdict: fits, tight or no, of one prediction for one GPU; every command asks `judge`.

low   the smallest capacity that survives the replay through the caching allocator, which releases its cache
      and asks again (with expandable segments too, where that was looked at);
high  what the allocator reserves where nothing bounds it.
Both with the GPU's CUDA context, and widened by the engine's error of reserved (`margin_of`, or what our own
recorded runs say where that is more). usable >= high: fits; usable < low: no; between: tight.

What is not modeled (another trainer, another vendor's kernels) makes all of it a lower bound: `withheld`, the
one place where a verdict is withheld.

A setup that is not replayed (ZeRO, offloading, FSDP2's accumulation under accelerate) has its estimate as low
and high, and `close_calls` says beside a `fits` what fragmentation could undo.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from memplan.planner.formula.sharding.strategies import flattens
from memplan.planner.inputs import quantized
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.tasks import lacks
from memplan.planner.prediction import GpuVerdict, Prediction, Survival
from memplan.planner.tables.gpus import Gpu, find_gpu
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.optimizers import OPTIMIZERS
from memplan.planner.tables.reserved_errors import reserved_error

Word = Literal["fits", "tight", "no"]

UNCOUNTED = {"others": 0.199, "4-bit base": 0.224}
"""What the native allocator reserves beyond its tensors, as a share of them, where nothing is replayed: P95
of seeded traces of catalog models of 1 to 80 billion parameters, 99 with 16- or 32-bit bases and 36 with
4-bit ones; medians 4.3 and 6.6 %, the worst 36 % in both (`benchmarks/fragmentation.py 140 --seed 2`; torch
2.13, transformers 5.23, bitsandbytes 0.50). It widens no verdict: it decides what is said beside one.
"""

MARGIN = {"formula": 0.0247, "trace": 0.0}
"""The P95 error of an engine's reserved bytes, as a share. The formula's is against the trace, over 239
random setups (`benchmarks/reserved.py 330 --seed 71`: median 0.00 %, worst 16.1 %, prompt-tuning of a model
of 270 million parameters; torch 2.13, transformers 5.24, peft 0.21.2, bitsandbytes 0.50). `margin_of` has
what was published of GPU runs, by method class and checkpointing.
"""


@dataclass(frozen=True, slots=True)
class Need:
    """What one run needs, in bytes without the CUDA context: allocated and reserved at most without a bound;
    `capacity`, the smallest that survives, where it is known, and `survival`, which can be asked. `margin`:
    by which share the engine may be off.
    """

    allocated: int
    reserved: int
    margin: float = 0.0
    capacity: int | None = None
    survival: Survival | None = None

    def device_bytes(self, gpu: Gpu) -> int:
        """What the allocator reserves plus this GPU's CUDA context."""
        return self.reserved + gpu.context_bytes

    def high_bytes(self, gpu: Gpu) -> int:
        """What a GPU must have so that the run surely fits."""
        return self.device_bytes(gpu) + round(self.reserved * self.margin)

    def low_bytes(self, gpu: Gpu) -> int:
        """Below what the run surely does not fit; several replays, where it has not been asked before."""
        bare = self.capacity
        if bare is None:
            bare = self.reserved if self.survival is None else self.survival.smallest_capacity()
        bare = min(bare, self.reserved)
        return bare - round(bare * self.margin) + gpu.context_bytes

    def fits(self, gpu: Gpu) -> bool:
        """Whether the verdict on a GPU is `fits`; no replay."""
        return self.high_bytes(gpu) <= gpu.usable_bytes

    def survives(self, gpu: Gpu) -> bool:
        """Whether the run survives on a GPU exactly as it is predicted; at most one replay."""
        return replace(self, margin=0.0).word(gpu) != "no"

    def word(self, gpu: Gpu) -> Word:
        """The verdict on a GPU; at most one replay."""
        if self.fits(gpu):
            return "fits"
        room = gpu.usable_bytes - gpu.context_bytes
        if self.capacity is None and self.survival is not None:
            if self.allocated * (1 - self.margin) > room:  # no less survives: nothing to replay
                return "no"
            return "tight" if self.survival.survives(round(room / (1 - self.margin))) else "no"
        return "tight" if self.low_bytes(gpu) <= gpu.usable_bytes else "no"


def need_of(prediction: Prediction) -> Need:
    """What a prediction says that its run needs."""
    capacity = prediction.smallest_capacity_bytes
    if capacity is not None:
        capacity = min(capacity, expandable_capacity(prediction) or capacity) - prediction.peak.context_bytes
    peak = prediction.peak
    return Need(peak.allocated_bytes, peak.reserved_bytes, margin(prediction), capacity, prediction.survival)


def device_bytes(prediction: Prediction, gpu: Gpu) -> int:
    """Predicted device peak on this GPU, bytes."""
    return need_of(prediction).device_bytes(gpu)


def margin(prediction: Prediction) -> float:
    """By which share a prediction's reserved bytes may be off, by published runs or by what a closed library
    may leave cached.
    """
    replayed = prediction.survival is not None or prediction.smallest_capacity_bytes is not None
    known = margin_of(prediction.engine, prediction.setup) if replayed else 0.0
    library = prediction.extra.get("library", {})
    return max(prediction.accuracy.margin, known, float(library.get("reserved_share", 0.0)))


def margin_of(engine: str, setup: Setup) -> float:
    """By which share an engine's replayed reserved bytes may be off for setups like this one: the P95 error
    in published runs of its method class and checkpointing, and MARGIN where that is more or none was
    published.
    """
    found = reserved_error(engine, setup.method, setup.quant_type, setup.checkpointing, setup.adapter)
    return max(MARGIN[engine], found.p95 if found is not None else 0.0)


def expandable_capacity(prediction: Prediction) -> int | None:
    """A GPU's size in bytes that survives with expandable segments; the trace looks where the GPU it names
    is too small without.
    """
    return prediction.extra.get("expandable_capacity_bytes")


def judge(prediction: Prediction, gpu: Gpu) -> GpuVerdict:
    """fits / tight / no of `prediction` on `gpu`, with headroom = usable - predicted device bytes (negative
    where it does not fit); none but `no` where something is not counted.
    """
    need = need_of(prediction)
    missing = tuple(dict.fromkeys((*prediction.not_modelled, *not_modelled(prediction, gpu))))
    word = withheld(need.word(gpu), missing)
    return GpuVerdict(
        gpu.name,
        gpu.usable_bytes,
        word,
        gpu.usable_bytes - need.device_bytes(gpu),
        why=not_counted(missing) if word is None else None,
        high_bytes=need.high_bytes(gpu),
        low=lambda: need.low_bytes(gpu),
    )


def withheld(word: Word, missing: Sequence[str]) -> Word | None:
    """The verdict where `missing` is not counted: of a lower bound only `no` stands."""
    return None if missing and word != "no" else word


def not_counted(missing: Sequence[str]) -> str:
    """Why there is no verdict."""
    return f"not counted: {'; '.join(missing)}"


def least_bytes(prediction: Prediction) -> int:
    """What the run needs at least on a GPU with the prediction's context; several replays."""
    need = need_of(prediction)
    return need.low_bytes(replace(find_gpu("24GiB"), context_bytes=prediction.peak.context_bytes))


def not_modelled(prediction: Prediction, gpu: Gpu | None = None) -> Iterator[str]:
    """What the prediction itself does not count, on the GPU in question or the one that its setup names."""
    named = find_gpu(prediction.setup.gpu) if prediction.setup.gpu is not None else None
    yield from uncounted_of(prediction.setup, gpu or named)
    if unknown := prediction.extra.get("unknown_ops"):
        yield f"workspaces of {', '.join(sorted({entry['op'] for entry in unknown}))}"


def uncounted_of(setup: Setup, gpu: Gpu | None) -> Iterator[str]:
    """What no engine counts of a setup on a GPU."""
    if lack := lacks(setup):
        yield lack
    if lack := quantized.lacks(setup):
        yield lack
    if any(rule in ("basis", "basis32") for _, rule in OPTIMIZERS[setup.optimizer].projects):
        yield f"cuSOLVER's own workspace for {setup.optimizer}'s singular value decompositions"
    if setup.quantize_experts and setup.gpus > 1 and setup.parallel not in ("none", "ddp"):
        yield f"how experts in 4 bits are divided under {setup.parallel}"
    elif setup.quantize_experts:  # axolotl's GLM-4.7-Flash example: 23 to 24 GiB, where 20.3 are predicted
        yield "the extra fifth that a published run with 4-bit experts needed (cause unknown)"
    if gpu is not None and not gpu.verified:
        yield f"{gpu.name}'s kernels and context: no run on this vendor's GPUs is recorded"
    if setup.parallel == "fsdp" and setup.fsdp_version == 1 and setup.gpus > 1:
        yield from _of_fsdp1(setup)


def _of_fsdp1(setup: Setup) -> Iterator[str]:
    """What is not counted of FSDP1, or what published runs of it needed beyond."""
    if not flattens(setup):
        yield "FSDP1 of this setup (predicted as FSDP2), which needed more than that in most published runs"
    elif setup.loop.prepares and METHODS[setup.method].trains == "adapter":
        # docs/accuracy.md fms-main-*-g2-*; dry runs of the installed releases agree (docs/ranks.md)
        yield "what published runs of adapters under the Trainer's FSDP1 needed beyond this (cause unknown)"


def withhold(prediction: Prediction, names: Sequence[str]) -> Prediction:
    """The prediction as a lower bound, but for `names`: its verdicts are withheld."""
    missing = tuple(dict.fromkeys((*prediction.not_modelled, *names)))
    if not missing:
        return prediction
    return prediction.with_(
        not_modelled=missing,
        gpus=tuple(
            v
            if v.verdict == "no" or v.headroom_bytes is None
            else replace(v, verdict=None, why=not_counted(missing))
            for v in prediction.gpus
        ),
    )


def what_it_takes(prediction: Prediction, gpu: Gpu) -> str:
    """What a tight verdict takes: the cache released now and then, expandable segments, or a smaller
    batch.
    """
    room, need = gpu.usable_bytes - gpu.context_bytes, need_of(prediction)
    if not prediction.extra.get("lengths", {}).get("on_gpu", {}).get("survives", True):
        return (
            "the longest batch fits alone, not behind others of different lengths: expandable segments, "
            "sorted batches (--set group_by_length=true) or a smaller batch"
        )
    if need.reserved <= room:
        return (
            f"within the {need.margin:.1%} by which what is reserved may be off; expandable segments or a "
            "smaller batch leave room"
        )
    native, expandable = _survivors(prediction, room)
    if native:
        return (
            "the allocator has to release its cache and ask again, which is slow; expandable segments would "
            "help"
        )
    if expandable:
        return (
            "only with PYTORCH_ALLOC_CONF=expandable_segments:True; without, it runs out of memory even "
            "after its cache is released"
        )
    return (
        f"it survives only if the prediction is too high by some of its {need.margin:.1%}: a smaller batch "
        "or "
        "shorter sequences are safe"
    )


def _survivors(prediction: Prediction, room: int) -> tuple[bool, bool]:
    """Whether so many bytes survive in the setup's own mode, and with expandable segments."""
    if prediction.smallest_capacity_bytes is not None:
        bare = prediction.smallest_capacity_bytes - prediction.peak.context_bytes
        return bare <= room, expandable_capacity(prediction) is not None
    if prediction.survival is None:
        return False, False
    native = prediction.survival.survives(room)
    return native, native or prediction.survival.survives(room, "expandable")


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
    """What to know of each GPU that the formula says `fits` by less than fragmentation commonly takes; None
    where there is none.

    A replay and a recorded error's band count fragmentation already; expandable segments leave next to none.
    """
    if prediction.smallest_capacity_bytes is not None or prediction.survival or prediction.accuracy.margin:
        return None
    rooms = ((gpu.name, gpu.usable_bytes - device_bytes(prediction, gpu), gpu.usable_bytes) for gpu in gpus)
    share = uncounted(prediction.setup)
    least = prediction.peak.allocated_bytes * share
    close = [
        f"{name} with {room / usable:.1%} of usable memory to spare"
        for name, room, usable in rooms
        if 0 <= room < least
    ]
    if not close:
        return None
    return (
        f"fits {', '.join(close)}: the formula does not count fragmentation, which was at most {share:.0%} "
        f"of allocated memory in 19 of 20 traced setups"
    )
