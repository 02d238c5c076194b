"""The shapes of optimizer states: one function for each Rule of optimizers.py. n elements of the parameter."""

from __future__ import annotations

from collections.abc import Callable

from planner.expr import Sized
from planner.optimizers import Rule
from planner.resident.stored import Stored

FLOOR_8BIT = 4096  # elements; smaller states stay 32-bit (bitsandbytes 0.50 optim/optimizer.py init_state: `p.numel() < 4096`)
FLOOR_PAGED = 100_000  # elements; smaller states are not paged (bitsandbytes 0.50 optim/optimizer.py get_state_buffer: `p.numel() < 1e5`)
BLOCK_8BIT = 256  # elements for each fp32 constant of an 8-bit state (the same file)

State = tuple[str, tuple[Sized, ...], str, bool]  # suffix, shape, dtype, whether a paged optimizer pages it


def _like(stored: Stored, elements: int | None) -> list[State]:
    return [("", stored.shape, stored.dtype, True)]


def _float32(stored: Stored, elements: int | None) -> list[State]:
    return [("", stored.shape, "float32", True)]


def _blockwise8(stored: Stored, elements: int | None) -> list[State]:
    assert elements is not None
    if elements < FLOOR_8BIT:
        return _float32(stored, elements)
    return [("", stored.shape, "uint8", True), (" constants", (-(-elements // BLOCK_8BIT),), "float32", False)]


def _step(stored: Stored, elements: int | None) -> list[State]:
    return [("", (1,), "float32", False)]


def _factored(stored: Stored, elements: int | None) -> list[State]:
    """Adafactor: row and column means over the last two dimensions, a full tensor for vectors."""
    if len(stored.shape) < 2:
        return _float32(stored, elements)
    *front, rows, columns = stored.shape
    return [(" rows", (*front, rows), "float32", False), (" columns", (*front, columns), "float32", False)]


STATES: dict[Rule, Callable[[Stored, int | None], list[State]]] = {
    "like": _like,
    "float32": _float32,
    "blockwise8": _blockwise8,
    "step": _step,
    "factored": _factored,
    "none": lambda stored, elements: [],
}
