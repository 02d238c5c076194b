"""Where backward works in place on a real device and never does on meta.

Every meta tensor, and every tensor under a dispatch mode, counts as "subclass-like"
(ATen/TensorSubclassLikeUtils.h, torch 2.13), and code that asks that question then makes a new tensor:
* the engine's sum of two gradients (torch/csrc/autograd/input_buffer.cpp accumulate, can_accumulate_inplace):
  in place if the earlier one is dense and the engine holds its last reference;
* formulas that fill a tensor of zeros (torch/csrc/autograd/FunctionsManual.cpp index_backward, ATen's
  gather_backward and value_selecting_reduction_backward): in place always.
Found by aligning the events of a real allocator with predicted ones.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
_ADD = _ATEN.add.Tensor
_FILLS = {
    _ATEN.index_put.default,
    _ATEN.scatter.src,
    _ATEN.scatter.value,
    _ATEN.scatter_add.default,
    _ATEN.index_add.default,
}


def into_first(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether a real device would write this op's result into its first argument, which nobody else holds."""
    if func is not _ADD and func not in _FILLS:
        return False
    node = torch._C._current_autograd_node()
    if torch.is_grad_enabled() or node is None or node.name().endswith("AccumulateGrad"):
        return False  # a leaf's node leads nowhere: what adds there is a hook, such as an optimizer's step
    first = args[0]
    if not first.is_meta or not _ATEN.is_non_overlapping_and_dense.default(first):
        return False
    holders, alone = _holders(first), calibrated()
    if func is _ADD:
        return _alike(first, args[1]) and holders == alone
    return holders[1] == alone[1]  # the formula itself holds its zeros, by one handle or two


def _alike(first: Tensor, second: Any) -> bool:
    return isinstance(second, Tensor) and first.shape == second.shape and first.dtype == second.dtype


def _holders(tensor: Tensor) -> tuple[int, int]:
    """Reference counts of a tensor and of its storage, Python's own included."""
    return tensor._use_count(), torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)  # type: ignore[attr-defined]


@cache
def calibrated() -> tuple[int, int]:
    """The counts of a gradient that only the engine holds: read off a sum where nobody else can. Call it
    first where no mode is active.
    """
    probe = _Probe()
    with torch.enable_grad():
        leaf = torch.ones(2, device="meta", requires_grad=True)
        middle = leaf * 2
        loss = (middle.sin() + middle.cos()).sum()
    with probe:
        loss.backward()
    return probe.counts


class _Probe(TorchDispatchMode):
    counts = (0, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _ADD and not torch.is_grad_enabled():
            self.counts = _holders(args[0])
        return func(*args, **(kwargs or {}))
