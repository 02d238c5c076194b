"""What differs between versions of torch, one row each: neither engine runs torch's CUDA code, so its rules
are data.

A later version than the last row behaves like it until something else is read or observed.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class TorchVersion(NamedTuple):
    """One minor version. `equal_blocks`: which of several free blocks of exactly one size the CUDA caching
    allocator takes: the one at the lowest `address`, the one whose block object is oldest (`creation`), or
    the lowest of the oldest `segment`.
    """

    equal_blocks: Literal["address", "creation", "segment"]
    source: str


_SEGMENT = (
    "pytorch/pytorch#183591 BlockComparatorSizeCounterAddress; observed in dry runs of 2.13.0 and 2.14.1"
)

TORCH_VERSIONS: dict[str, TorchVersion] = {
    "2.11": TorchVersion("address", "torch 2.11 c10/cuda/CUDACachingAllocator.cpp BlockComparatorSize"),
    "2.12": TorchVersion("creation", "observed in the real allocator's events, dry runs of torch 2.12.0"),
    "2.13": TorchVersion("segment", _SEGMENT),
    "2.14": TorchVersion("segment", _SEGMENT),
}
NEWEST = list(TORCH_VERSIONS)[-1]


def release_of(version: str) -> tuple[int, int]:
    """A row's name as numbers that compare: '2.14' -> (2, 14)."""
    major, minor = version.split(".")
    return int(major), int(minor)


def nearest(version: str) -> str:
    """The row that a full version such as `2.12.1+cu130` is predicted by: its own, else the first or the
    last.
    """
    minor = ".".join(version.split("+")[0].split(".")[:2])
    if minor in TORCH_VERSIONS:
        return minor
    numbers = [int(part) if part.isdigit() else 0 for part in minor.split(".")]
    older = numbers < [int(part) for part in next(iter(TORCH_VERSIONS)).split(".")]
    return next(iter(TORCH_VERSIONS)) if older else NEWEST
