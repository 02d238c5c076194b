"""What makes one run like another: the one definition, used wherever a prediction cites published runs.

Eight traits decide which tensors are alive at the peak and what the allocator makes of them. Runs are alike
where task, method, checkpointing, attention and strategy are the same and at most one of precision, GPU
generation and loop differs; a generation that nobody named differs from none.
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import find_gpu
from memplan.planner.tables.loops import PLAIN
from memplan.planner.tables.method_class import method_class

Traits = Mapping[str, str | int | None]
SAME = ("task", "method", "checkpointing", "attention", "strategy")
NEAR = ("precision", "generation", "loop")
_WHOLE_SCORES = ("eager", "sdpa-math")


def traits(setup: Setup) -> dict[str, str | int | None]:
    """The traits of a setup, by name: what is trained, the kind of method and base, 16- or 32-bit weights and
    autocast, checkpointing, whether attention keeps its S x S scores, the GPU's major compute capability
    (None where no GPU is named), the training loop, and how several GPUs share.
    """
    width = "32-bit" if setup.weight_dtype == "float32" else "16-bit"
    return {
        "task": setup.task,
        "method": method_class(setup.method, setup.quant_type, setup.adapter),
        "checkpointing": "off" if setup.checkpointing == "none" else "on",
        "attention": "whole scores" if setup.attention in _WHOLE_SCORES else "tiled",
        "strategy": setup.parallel if setup.gpus > 1 else "one GPU",
        "precision": width if setup.autocast == "none" else f"{width} with autocast",
        "generation": generation(setup),
        "loop": "plain" if setup.loop is PLAIN else "Trainer",
    }


def generation(setup: Setup) -> int | None:
    """The named GPU's major compute capability; None where no GPU is named, or one without CUDA."""
    if setup.gpu is None or setup.device == "cpu":
        return None
    try:
        capability = find_gpu(setup.gpu).capability
    except UsageError:
        return None
    return capability[0] if capability else None


def differing(one: Traits, other: Traits) -> tuple[str, ...]:
    """The names of the traits in which two runs differ, those that must be the same first."""
    return tuple(
        name
        for name in (*SAME, *NEAR)
        if one[name] != other[name] and not (name == "generation" and None in (one[name], other[name]))
    )


def alike(one: Traits, other: Traits) -> bool:
    """Whether two runs are like one another."""
    names = differing(one, other)
    return len(names) <= 1 and not set(names) & set(SAME)
