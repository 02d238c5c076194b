"""FlashAttention-2 as the flash-attn package runs it, on meta: every tensor that its autograd functions make, none of its arithmetic.

Source: flash-attn 2.8 flash_attn_interface.py (FlashAttnFunc, FlashAttnVarlenFunc), csrc/flash_attn/flash_api.cpp (mha_fwd, mha_bwd,
mha_varlen_bwd), bert_padding.py; transformers 5.23 integrations/flash_attention.py and modeling_flash_attention_utils.py.
Left out: the split-key buffers of a forward with too few blocks to fill the card (inference shapes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from planner.errors import UsageError
from planner.sdp import refuses_flash2

NAME = "memplan_fa2"  # transformers checks for the package wherever an implementation's name contains "flash"


@dataclass(slots=True)
class Tokens:
    """What values would tell on a real device: padding tokens of the batch, and documents packed into one row."""

    padding: int = 0
    documents: int = 1


TOKENS = Tokens()


def register() -> None:
    """Make `attn_implementation=NAME` known to transformers, with FlashAttention-2's own mask function."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, flash_attention_mask)


def attend(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
           **ignored: Any) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' flash_attention_forward: (B, H, S, D) in, (B, S, H, D) out; padded rows are unpadded, packed ones flattened."""
    from transformers.integrations.flash_attention import get_target_dtype

    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    size, value_size = query.shape[-1], value.shape[-1]
    if value_size != size:
        value = F.pad(value, [0, size - value_size])
    cast = get_target_dtype(query, module)
    if cast is not None:
        query, key, value = query.to(cast), key.to(cast), value.to(cast)
    refused = refuses_flash2((8, 0), str(query.dtype).removeprefix("torch."))  # the card was asked before
    if refused:
        raise UsageError(refused)
    if attention_mask is not None:
        out = _unpadded(query, key, value, attention_mask, dropout)
    elif TOKENS.documents > 1 and query.shape[0] == 1:
        batch, length = query.shape[:2]
        flat = [t.contiguous().view(-1, t.shape[-2], t.shape[-1]) for t in (query, key, value)]
        bounds = torch.empty(TOKENS.documents + 1, dtype=torch.int32, device=query.device)
        out = _flash(flat[0], flat[1], flat[2], bounds).view(batch, length, query.shape[2], size)
    else:
        out = _flash(query, key, value, None)
    return (out[..., :value_size] if value_size != size else out), None


def _unpadded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """_upad_input and pad_input: real tokens are gathered before, and scattered into zeros after."""
    batch, length, heads, size = query.shape
    lengths = mask.sum(dim=-1, dtype=torch.int32)
    indices = torch.empty(batch * length - TOKENS.padding, dtype=torch.int64, device=query.device)  # nonzero of the flattened mask
    bounds = F.pad(torch.cumsum(lengths, dim=0, dtype=torch.int32), (1, 0))
    query, key, value = (t.reshape(-1, *t.shape[2:])[indices] for t in (query, key, value))
    out = _flash(query, key, value, bounds)
    return _Scatter.apply(out, indices, batch * length).view(batch, length, heads, size)


def _flash(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor | None) -> Tensor:
    extra = -query.shape[-1] % 8
    size = query.shape[-1]
    if extra:
        query, key, value = (F.pad(t, (0, extra)) for t in (query, key, value))
    out: Tensor = _Flash.apply(query, key, value, bounds)
    return out[..., :size] if extra else out


class _Scatter(torch.autograd.Function):  # type: ignore[misc]
    """bert_padding.IndexPutFirstAxis."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(indices)
        output = torch.zeros(rows, *values.shape[1:], device=values.device, dtype=values.dtype)
        output[indices] = values
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (indices,) = ctx.saved_tensors
        return grad[indices], None, None


class _Flash(torch.autograd.Function):  # type: ignore[misc]
    """FlashAttnFunc (bounds None) and FlashAttnVarlenFunc: outputs, what is saved, and the backward's accumulators."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bounds: Tensor | None) -> Tensor:
        out = torch.empty_like(query)
        heads = query.shape[-2]
        rows = (query.shape[0], heads, query.shape[1]) if bounds is None else (heads, query.shape[0])
        lse = torch.empty(rows, dtype=torch.float32, device=query.device)
        random_state = torch.empty(2, dtype=torch.int64, device=query.device)
        ctx.save_for_backward(query, key, value, out, lse, random_state, *(() if bounds is None else (bounds,)))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        query, key, value, _, _, _, *bounds = ctx.saved_tensors
        if grad.stride(-1) != 1:
            grad = grad.contiguous()
        made = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        heads, size = query.shape[-2], -(-query.shape[-1] // 32) * 32
        if bounds:
            rows = query.shape[0] + 128 * (bounds[0].shape[0] - 1)
        else:
            rows = -(-query.shape[1] // 128) * 128
        batch = tuple(query.shape[:1]) if not bounds else ()
        device = query.device
        held = [torch.empty((*batch, heads, rows), dtype=torch.float32, device=device)]
        held.append(torch.empty((*batch, rows, heads, size), dtype=torch.float32, device=device))
        if key.shape[-2] != heads:
            expanded = (*key.shape[:-2], heads, key.shape[-1])
            held += [torch.empty(expanded, dtype=key.dtype, device=device) for _ in range(2)]
        del held
        return (*made, None)
