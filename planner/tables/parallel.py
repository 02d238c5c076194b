"""The strategies of several GPUs by name, and what a name means beyond itself."""

from __future__ import annotations

from typing import Any

MEANT: dict[str, dict[str, Any]] = {
    "fsdp1": {"parallel": "fsdp", "fsdp_version": 1},
    "fsdp2": {"parallel": "fsdp", "fsdp_version": 2},
}
"""Names of a version of FSDP: the Setup fields that they stand for."""
SHARED = ("fsdp", "zero1", "zero2", "zero3")
"""Strategies whose ranks share something of the model."""
NAMED = ("ddp", "fsdp", *MEANT, *SHARED[1:])
"""Names that a person may give."""
SPOKEN = f"{', '.join(NAMED[:-1])} or {NAMED[-1]}"


def named(parallel: str, fsdp_version: int) -> str:
    """A strategy's name with the version of FSDP that is not the fallback's."""
    return "fsdp1" if parallel == "fsdp" and fsdp_version == 1 else parallel
