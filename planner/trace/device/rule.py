"""What is known of one op's memory: KernelRule, the OpCall that it is asked about, and the Workspace
allocations that it answers with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from memplan.planner.trace.device.target import Target

Status = Literal["measured", "source", "library", "unknown"]
"""library: known but for what a closed library takes beside, whose documented reach the rule has."""


class Workspace(NamedTuple):
    """An allocation that no tensor shows. `persistent`: it is never freed. `before`: it is made before the
    op's outputs are. `last`: it is freed after those that are not.
    """

    name: str
    nbytes: int
    persistent: bool = False
    before: bool = False
    last: bool = False


class OpCall(NamedTuple):
    """One op at work: its arguments, its outputs, and the device it is modeled on."""

    target: Target
    args: tuple[Any, ...]
    outputs: Sequence[Tensor]


Finder = Callable[[OpCall], Iterable[Workspace]]
Reach = Callable[[OpCall], int]


@dataclass(frozen=True, slots=True)
class KernelRule:
    """What is known of one op: where it was read or measured, its hidden allocations, positions of the
    outputs that live on the host on CUDA, and the order in which it makes its outputs where that is not
    theirs.
    """

    source: str
    hidden: Finder | None = None
    on_host: Callable[[OpCall], tuple[int, ...]] | None = None
    matmul: Callable[[OpCall], str] | None = (
        None  # "cublas" or "cublaslt", whose workspace the running thread holds; "" without a product
    )
    status: Status = "source"
    order: tuple[int, ...] = ()
    reach: Reach | None = None
    """Of a closed library's kernels, whose workspace nobody can know: the most bytes that its documented
    algorithms need beside each output, while that is made.
    """


def bytes_of(tensor: Tensor) -> int:
    """Bytes of a dense tensor of this shape and dtype."""
    return int(tensor.numel() * tensor.element_size())
