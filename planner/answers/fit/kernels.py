"""What a GPU's own kernels make of a setup: whether it can run it, and what it needs there."""

from __future__ import annotations

from dataclasses import replace

from memplan.planner.answers.fit.frontier import peak_of
from memplan.planner.answers.verdict import Need, margin
from memplan.planner.formula.engine import replay_of, symbolic, whole_segments
from memplan.planner.formula.forward.context import Device
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu


def kernels(gpu: Gpu | None) -> tuple[int, ...]:
    """All that kernels ask of a GPU: GPUs of equal answers need the same memory. The assumed GPU's where
    none is known.
    """
    return (
        Device("cuda").kernels
        if gpu is None or gpu.capability is None
        else Device("cuda", gpu.capability).kernels
    )


def older(gpu: Gpu) -> bool:
    """Whether a GPU is older than what is assumed where none is named, and so takes other kernels (no
    bfloat16, no flash attention).
    """
    return gpu.capability is not None and gpu.capability < Device("cuda").capability


NARROW = ("sdpa-flash", "sdpa-cudnn")
"""Attentions that a GPU newer than the assumed one may refuse for a head size (planner/tables/sdp.py)."""


def cannot_run(spec: ModelSpec, setup: Setup, gpu: Gpu) -> str | None:
    """Why a GPU cannot run a setup that others can, such as FlashAttention 2 or TRL's loss in bfloat16 on a
    T4; None where it can.

    The GPU that the setup names is left out of the question: naming one that cannot run it is an error. Asked
    of the formula, and only where a GPU's kernels could differ in it.
    """
    forced = setup.attention not in ("eager", "sdpa") or setup.loss == "chunked"
    if gpu.capability is None or not forced or not (older(gpu) or setup.attention in NARROW):
        return None
    try:
        structure = symbolic(spec, setup.with_(gpu=gpu.name))
        structure.program(structure.guard(setup.micro_batch, setup.sequence_length))
    except UsageError as refused:
        return str(refused)
    return None


def with_its_kernels(spec: ModelSpec, prediction: Prediction, gpu: Gpu) -> Prediction:
    """A formula's prediction that named no GPU, with the peak that an older GPU's own kernels give: what to
    judge that GPU by. Where the tensors alone are too many for it, they are not replayed.
    """
    setup = prediction.setup.with_(gpu=gpu.name)
    allocated = peak_of(spec, setup)
    tensors = Need(allocated, whole_segments(allocated), margin(prediction))
    run = replay_of(spec, setup) if tensors.word(gpu) != "no" else None
    reserved = tensors.reserved if run is None else run.reserved_bytes
    return prediction.with_(
        peak=replace(prediction.peak, allocated_bytes=allocated, reserved_bytes=reserved), survival=run
    )
