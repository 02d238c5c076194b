"""Attention as CUDA runs it, on meta tensors: the aten op of the backend that CUDA would choose, with its
auxiliary tensors.

On meta, scaled_dot_product_attention always decomposes to its math path, which materializes the scores.
Within `modeled(target)` a call with meta tensors takes the op of the target's backend instead, and autograd
its backward op. Tensors on real devices are untouched.

The composite around each backend (masks made additive, head sizes padded) follows
aten/src/ATen/native/transformers/attention.cpp (torch 2.13); transformers' own layer (repeat_kv, enable_gqa,
is_causal) runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from memplan.planner.run.attention import on_device
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.sdp import FORCED, refusal, refuses_flash2, refuses_on_cpu
from memplan.planner.trace.autocast import lowered
from memplan.planner.trace.device import flash2
from memplan.planner.trace.device.sdp import HALF, AttentionCall, choose
from memplan.planner.trace.device.target import Target

aten = torch.ops.aten
_REAL = F.scaled_dot_product_attention


def packages(attention: str) -> AbstractContextManager[None]:
    """What a Setup.attention needs installed while a model is made on meta: memplan's flash-attn."""
    return flash2.installed() if attention == flash2.NAME else nullcontext()


@contextmanager
def modeled(target: Target, attention: str = "sdpa", padding: int = 0, documents: int = 1) -> Iterator[None]:
    """Within it, scaled_dot_product_attention on meta tensors takes the backend that `target` would, or the
    one `attention` forces.

    `padding` tokens of the batch and `documents` packed into a row are what FlashAttention-2 would read off
    the values of its masks.

    Raises UsageError at a call that the forced backend refuses, as torch would.
    """
    if attention == flash2.NAME:
        refused = (
            refuses_on_cpu(attention)
            if target.device == "cpu"
            else refuses_flash2(target.capability, "bfloat16")
        )
        if refused:
            raise UsageError(refused)
    forced = FORCED.get(attention)
    outer = F.scaled_dot_product_attention

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if query.device.type != "meta":
            return outer(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        with lowered(query, key, value, attn_mask) as (query, key, value, attn_mask):
            call = AttentionCall(target, query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
            if target.device == "cpu":
                return _cpu(call, scale, attention)
            backend = choose(call, forced)
            if backend is None:
                raise UsageError(refusal(call.asked(), str(forced)))
            return _BACKENDS[backend](call, scale)

    F.scaled_dot_product_attention = attend
    torch._C._nn.scaled_dot_product_attention, raw = attend, torch._C._nn.scaled_dot_product_attention  # type: ignore[attr-defined]
    tokens = flash2.TOKENS
    before = tokens.padding, tokens.documents
    tokens.padding, tokens.documents = padding, documents
    try:
        with packages(attention):
            yield
    finally:
        tokens.padding, tokens.documents = before
        F.scaled_dot_product_attention = outer
        torch._C._nn.scaled_dot_product_attention = raw  # type: ignore[attr-defined]


# One function a backend: the composite around its op. -------------------------------------------------------


def _flash(c: AttentionCall, scale: float | None) -> Tensor:
    """Head sizes are padded to a multiple of 8 and the output is cut back; the scale is that of the size
    given.
    """
    size = c.query.shape[-1]
    scale = size**-0.5 if scale is None else scale
    query, key, value = (_padded(t, 8) for t in c.tensors)
    out = aten._scaled_dot_product_flash_attention(
        query, key, value, c.dropout, c.causal, False, scale=scale
    )[0]
    return out if out.shape[-1] == size else out[..., :size]


def _efficient(c: AttentionCall, scale: float | None) -> Tensor:
    mask = _additive(c.mask, c.query.dtype)
    if mask is not None:
        if mask.stride(-1) != 1 or any(stride % 8 for stride in mask.stride()[:-1]):
            last = mask.shape[-1]
            mask = F.pad(mask, (0, 8 - last % 8))[..., :last]
        mask = mask.expand(c.query.shape[0], c.query.shape[1], c.query.shape[2], c.key.shape[2])
    return aten._scaled_dot_product_efficient_attention(
        *c.tensors, mask, c.trains, c.dropout, c.causal, scale=scale
    )[0]


def _cudnn(c: AttentionCall, scale: float | None) -> Tensor:
    mask = _additive(c.mask, c.query.dtype)
    return aten._scaled_dot_product_cudnn_attention(
        *c.tensors, mask, c.trains, c.dropout, c.causal, False, scale=scale
    )[0]


def _math(c: AttentionCall, scale: float | None) -> Tensor:
    """_scaled_dot_product_attention_math op by op: as one composite it would not add the mask in place on
    meta (accumulate.py says why).

    16-bit inputs are computed in fp32; the scores are cast back too, for an output that nobody takes, and
    before the product (the compiler evaluates make_tuple's arguments from the right). C++ keeps every local
    until the end: the order of frees is the one in the allocator's events (torch 2.11.0 to 2.14.1).
    """
    dtype = c.query.dtype
    mask = _additive(c.mask, dtype)
    wide = not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    query, key, value = (t.float() if t.dtype in HALF and wide else t for t in c.tensors)
    factor = abs(query.shape[-1] ** -0.5 if scale is None else scale) ** 0.5
    scaled = query * (-factor if scale is not None and scale < 0 else factor)
    if c.causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        mask = _additive(mask, query.dtype)
    keys, values = key, value
    if c.gqa and key.shape[-3] != query.shape[-3]:
        keys = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        values = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = scaled @ (keys.transpose(-2, -1) * factor)
    if mask is not None:
        scores.add_(mask)
    scores = aten._safe_softmax(scores, -1)
    if c.dropout > 0:
        scores = torch.dropout(scores, c.dropout, True)
    narrow = scores.to(dtype)
    out = (scores @ values).to(dtype)
    del scores, values, keys, scaled, mask, value, key, query, narrow
    return out


_BACKENDS: dict[str, Callable[[AttentionCall, float | None], Tensor]] = {
    "flash": _flash,
    "efficient": _efficient,
    "cudnn": _cudnn,
    "math": _math,
}


def _cpu(c: AttentionCall, scale: float | None, attention: str) -> Tensor:
    """The CPU's choice is the installed torch's own, asked with tensors of these shapes that hold no
    memory.
    """
    if refused := refuses_on_cpu(attention, c.dropout):
        raise UsageError(refused)
    stand_ins = [_stand_in(t) for t in c.tensors]
    mask = None if c.mask is None else _stand_in(c.mask)
    with on_device(attention):
        chosen = torch._fused_sdp_choice(*stand_ins, mask, c.dropout, c.causal, scale=scale, enable_gqa=c.gqa)
    if chosen == SDPBackend.ERROR.value:
        raise UsageError(
            f"attention {attention} cannot run on the CPU: torch has no such kernel for these tensors; use "
            "--attention sdpa"
        )
    if chosen != SDPBackend.FLASH_ATTENTION.value:  # the only fused one there
        return _math(c, scale)
    mask = _additive(c.mask, c.query.dtype)
    return aten._scaled_dot_product_flash_attention_for_cpu(
        *c.tensors, c.dropout, c.causal, attn_mask=mask, scale=scale
    )[0]


def _stand_in(tensor: Tensor) -> Tensor:
    """A CPU tensor of the same shape, dtype and last stride whose rows all share one row of memory."""
    with torch.no_grad():
        row = torch.empty(tensor.shape[-1], dtype=tensor.dtype).expand(tensor.shape)
    return row.requires_grad_(tensor.requires_grad) if tensor.is_floating_point() else row


def _padded(tensor: Tensor, multiple: int) -> Tensor:
    extra = -tensor.shape[-1] % multiple
    return F.pad(tensor, (0, extra)) if extra else tensor


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """convert_boolean_attn_mask: a boolean mask becomes one of the query's dtype, as large as itself in
    elements, and is not inverted first (the allocator's events of torch 2.11.0 to 2.14.1).
    """
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.where(mask, torch.scalar_tensor(0.0, dtype=dtype, device=mask.device), float("-inf"))
