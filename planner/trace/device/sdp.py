"""A call of scaled_dot_product_attention on tensors, as the questions of planner/tables/sdp.py: which backend
takes it, and why not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from memplan.planner.tables import sdp
from memplan.planner.trace.device.target import Target

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One call of scaled_dot_product_attention: (batch, heads, sequence, head size) tensors and its options,
    on a target.
    """

    target: Target
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None = None
    dropout: float = 0.0
    causal: bool = False
    gqa: bool = False

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value."""
        return self.query, self.key, self.value

    @property
    def trains(self) -> bool:
        """Whether a backward will follow."""
        return torch.is_grad_enabled() and any(t.requires_grad for t in self.tensors)

    def asked(self) -> sdp.Asked:
        """What the selection's filters look at."""
        q, k, v = self.tensors
        dtypes = {str(t.dtype).removeprefix("torch.") for t in self.tensors}
        return sdp.Asked(
            capability=self.target.capability,
            dtype=dtypes.pop() if len(dtypes) == 1 else "mixed",
            heads=(q.shape[-3], k.shape[-3], v.shape[-3]),
            sizes=(q.shape[-1], k.shape[-1], v.shape[-1]),
            masked=self.mask is not None,
            dropout=self.dropout,
            causal=self.causal,
            gqa=self.gqa,
            trains=self.trains,
            square=q.shape[-2] == k.shape[-2],
            efficient_gqa=native_gqa_in_efficient(),
            torch=self.target.torch,
            unfit=frozenset(name for name, holds in self._layout().items() if not holds),
        )

    def _layout(self) -> dict[str, bool]:
        """The filters about dimensions, strides and lengths (planner/tables/sdp.py names them), and whether
        these tensors pass.
        """
        q, k, mask = self.query, self.key, self.mask
        strides = all(t.stride(-1) == 1 for t in self.tensors)
        mask_stride = mask is None or mask.stride(-1) == 1
        return {
            "four_dimensions": all(t.dim() == 4 for t in self.tensors),
            "same_batch": len({t.shape[0] for t in self.tensors}) == 1,
            "not_empty": q.shape[-2] > 0 and k.shape[-2] > 0,
            "unit_strides": strides and mask_stride,
            "unit_strides_or_size_1": (strides or q.shape[-1] == 1) and mask_stride,
            "mask_shape": self._mask_fits(),
            "cudnn_lengths": max(q.shape[0], q.shape[-3]) <= 65535
            and k.shape[-2] != 1
            and not (self.dropout and q.shape[-2] == 1),
        }

    def _mask_fits(self) -> bool:
        """check_attn_mask_shape: two or four dimensions, each the target's or 1, no gradient."""
        if self.mask is None:
            return True
        if self.mask.requires_grad or self.mask.dim() not in (2, 4):
            return False
        wanted = (*self.query.shape[:3], self.key.shape[-2])[-self.mask.dim() :]
        return all(bool(have in (1, want)) for have, want in zip(self.mask.shape, wanted, strict=True))


@cache
def native_gqa_in_efficient() -> bool:
    """Whether the memory-efficient kernel takes grouped heads: pytorch PR 191085; torch 2.13 and older refuse
    them.

    Read from the C++ header that the installed torch ships: its filter template got a parameter in that
    change.
    """
    header = Path(torch.__file__).parent / "include/ATen/native/transformers/sdp_utils_cpp.h"
    return header.is_file() and "supports_mqa" in header.read_text(encoding="utf-8", errors="replace")


def choose(call: AttentionCall, forced: str | None = None) -> str | None:
    """The backend CUDA takes: "cudnn", "flash", "efficient" or "math"; with `forced` (what `sdpa_kernel`
    allows) that one or None.
    """
    return sdp.choose(call.asked(), forced)


def reason(call: AttentionCall, backend: str) -> str | None:
    """The first filter that refuses this call, None where the backend takes it."""
    return sdp.reason(call.asked(), backend)
