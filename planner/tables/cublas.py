"""cuBLAS's workspaces: how many bytes PyTorch gives each handle, which thread holds them, and for how long.

PyTorch has one handle a thread and device, and one workspace a handle and stream: the main thread's is made
by its first matrix product, that of autograd's thread by the first one of the backward. Up to torch 2.14 they
are held until the thread exits, from 2.15 on each product makes one and frees it (PyTorch PR 194311).
cuBLASLt has a workspace of its own in 2.11, and shares cuBLAS's from 2.12 on (PR 175879). Read in
aten/src/ATen/cuda/CublasHandlePool.cpp, and in the machine code of the wheels of 2.11 to 2.15.
"""

from __future__ import annotations

from memplan.planner.tables.sdp import TORCH
from memplan.planner.tables.units import KIB, MIB

Release = tuple[int, int]

THREADS = ("main", "autograd")
SMALL = 2 * 4096 * KIB + 8 * 16 * KIB  # parseChosenWorkspaceSize ":4096:2:16:8", measured twice on a T4
LARGE = 32 * MIB  # the same function on Hopper, and on Blackwell since torch 2.12
SIZES = (SMALL, LARGE)
LT = MIB  # parseCUDABlasLtWorkspaceSize: 1,024 KiB, where cuBLASLt has a workspace of its own
HELD = "held by the thread's cuBLAS handle from its first matrix product until the thread exits"


def workspace_bytes(capability: tuple[int, int], release: Release = TORCH) -> int:
    """Bytes of one cuBLAS workspace, for a compute capability and a release of torch."""
    newer = capability[0] in (9, 10, 11, 12) and release >= (2, 12)
    return LARGE if capability == (9, 0) or newer else SMALL


def workspace_name(thread: str) -> str:
    """The row's name of the workspace that a thread's handle holds."""
    return f"cuBLAS workspace of the {thread} thread"


def held(release: Release) -> bool:
    """Whether handles keep their workspaces (True) or each product has one of its own."""
    return release < (2, 15)


def has_lt_workspace(release: Release) -> bool:
    """Whether cuBLASLt has a workspace beside cuBLAS's."""
    return release < (2, 12)
