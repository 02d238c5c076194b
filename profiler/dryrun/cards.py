"""What a program asks of a GPU, as the environment variables that the stub libraries read."""

from __future__ import annotations

from dataclasses import dataclass

from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.units import KIB
from memplan.profiler.environment import STUB_MARK

AMPERE = (8, 0)
EVERYTHING = 4 << 40
"""Bytes of a GPU that never runs out of memory: one device's address space."""


@dataclass(frozen=True, slots=True)
class Multiprocessor:
    """What one multiprocessor has, by compute capability (CUDA C++ Programming Guide, technical
    specifications).
    """

    shared_bytes: int
    threads: int
    blocks: int


MULTIPROCESSORS: dict[tuple[int, int], Multiprocessor] = {
    (7, 0): Multiprocessor(96 * KIB, 2048, 32),
    (7, 5): Multiprocessor(64 * KIB, 1024, 16),
    (8, 0): Multiprocessor(164 * KIB, 2048, 32),
    (8, 6): Multiprocessor(100 * KIB, 1536, 16),
    (8, 7): Multiprocessor(164 * KIB, 1536, 16),
    (8, 9): Multiprocessor(100 * KIB, 1536, 24),
    (9, 0): Multiprocessor(228 * KIB, 2048, 32),
    (10, 0): Multiprocessor(228 * KIB, 2048, 32),
    (10, 3): Multiprocessor(228 * KIB, 2048, 32),
    (12, 0): Multiprocessor(100 * KIB, 1536, 24),
    (12, 1): Multiprocessor(100 * KIB, 1536, 24),
}
MOST_GPUS = 16


def check_card(gpu: Gpu | None, count: int) -> None:
    """Raises UsageError for a GPU that torch's CUDA build does not run on, or too many of them."""
    if gpu is not None and not gpu.verified:
        raise UsageError(f"{gpu.name} is no NVIDIA GPU: a dry run is of torch's CUDA build")
    if not 1 <= count <= MOST_GPUS:
        raise UsageError(f"--gpus {count}: expected 1 to {MOST_GPUS} on one machine")


def capability_of(gpu: Gpu | None) -> tuple[int, int]:
    """A GPU's compute capability; Ampere's where it is not known."""
    return (gpu.capability if gpu else None) or AMPERE


def card_environment(gpu: Gpu | None, count: int, architecture: int, bounded: bool = True) -> dict[str, str]:
    """The variables for `count` GPUs of a kind (None: an Ampere GPU) that run kernels of that architecture.
    Not `bounded`: memory never runs out.
    """
    major, minor = capability_of(gpu)
    core = MULTIPROCESSORS[major, minor]
    total = gpu.usable_bytes if gpu is not None and bounded else EVERYTHING - (64 << 30)
    return {
        "MEMPLAN_STUB_NAME": device_name(gpu),
        "MEMPLAN_STUB_CAPABILITY": f"{major}{minor}",
        "MEMPLAN_STUB_ARCHITECTURE": str(architecture),
        "MEMPLAN_STUB_MULTIPROCESSORS": str((gpu.sms if gpu else None) or 108),
        "MEMPLAN_STUB_SHARED_PER_MULTIPROCESSOR": str(core.shared_bytes),
        "MEMPLAN_STUB_THREADS_PER_MULTIPROCESSOR": str(core.threads),
        "MEMPLAN_STUB_BLOCKS_PER_MULTIPROCESSOR": str(core.blocks),
        "MEMPLAN_STUB_TOTAL_BYTES": str(total),
        "MEMPLAN_STUB_CONTEXT_BYTES": str(gpu.context_bytes if gpu is not None and bounded else 0),
        "MEMPLAN_STUB_DEVICES": str(count),
    }


def device_name(gpu: Gpu | None) -> str:
    """What torch calls the device, with a word that it is none."""
    name = gpu.name.upper() if gpu is not None and gpu.capability else "GPU"
    return f"NVIDIA {name} {STUB_MARK}"
