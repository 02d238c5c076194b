"""The device whose kernels and allocator a trace models."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch

from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.gpus import find_gpu, gpus
from memplan.planner.tables.torch_versions import release_of

DEFAULT_GPU = "a100-80gb"


@cache
def installed() -> tuple[int, int]:
    """The release of the installed torch, as (2, 13)."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


@dataclass(frozen=True, slots=True)
class Target:
    """What kernels choose by: device type, compute capability, number of multiprocessors (None on CPU),
    the release of torch whose kernels and filters are modeled.
    """

    device: Literal["cuda", "cpu"]
    capability: tuple[int, int] = (8, 0)
    sms: int = 108
    context_bytes: int = 0
    name: str = DEFAULT_GPU
    torch: tuple[int, int] = field(default_factory=installed)


def target_of(setup: Setup) -> Target:
    """The target of a setup: the GPU named, else an A100; a budget in bytes is an A100 of that size."""
    if setup.device == "cpu":
        return Target("cpu", name="cpu")
    card = find_gpu(setup.gpu) if setup.gpu else gpus()[DEFAULT_GPU]
    fallback = gpus()[DEFAULT_GPU]
    return Target(
        "cuda",
        card.capability or fallback.capability or (8, 0),
        card.sms or fallback.sms or 108,
        card.context_bytes,
        card.name,
        release_of(setup.torch),
    )
