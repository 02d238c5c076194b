"""What an op takes and returns, as the observer sees it: its tensors, whether it makes storages, and what its
kernel allocates beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

_FROM_HOST = {
    torch.ops.aten.lift_fresh.default
}  # torch.tensor(data) reaches the device through this alias op


class WorkspaceLike(Protocol):
    """An allocation that no tensor shows."""

    name: str
    nbytes: int
    persistent: bool  # never freed: a cuBLAS workspace
    before: bool  # made before the op's outputs
    last: bool  # freed after those that are not


class KernelFacts(Protocol):
    """What kernels allocate unseen, and which outputs they make on the device, in which order
    (planner/trace/kernels.py).
    """

    def __call__(self, op: Any, args: tuple[Any, ...], outputs: Sequence[torch.Tensor]) -> Sequence[Any]: ...
    def order(self, op: Any, args: tuple[Any, ...], outputs: Sequence[torch.Tensor]) -> Sequence[int]:
        """Positions of the results that an operator allocates on the device, in that order."""

    def reach(self, op: Any, args: tuple[Any, ...], outputs: Sequence[torch.Tensor]) -> int:
        """Bytes that a closed library's kernel may take beside each of them; 0: everything is known."""


_KNOWN: dict[Any, bool] = {}


def makes_storage(func: Any) -> bool:
    """Whether the op can return storages of its own: false for views, in-place and out= variants, by its
    schema.
    """
    known = _KNOWN.get(func)
    if known is None:
        returns = func._schema.returns
        known = func in _FROM_HOST or not returns or any(r.alias_info is None for r in returns)
        _KNOWN[func] = known
    return known


def tensors_of(out: Any) -> Sequence[torch.Tensor]:
    """The tensors that an op returned, in order; a sparse one as its indices and values."""
    if isinstance(out, torch.Tensor):
        return (out,) if out.layout == torch.strided else (out._indices(), out._values())
    if isinstance(out, (list, tuple)):
        return [t for o in out for t in tensors_of(o)]
    return ()


def tensor_arguments(args: Sequence[Any]) -> Iterator[torch.Tensor]:
    """Every tensor among an op's arguments, in lists too."""
    for arg in args:
        if isinstance(arg, torch.Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from tensor_arguments(arg)


def element(arg: Any, index: int) -> Any:
    """The tensor of an argument that the output at `index` is made from: a list's own element."""
    if isinstance(arg, torch.Tensor):
        return arg
    return arg[index] if index < len(arg) else None
