"""FlashAttention-2 on meta: the flash-attn package's own functions, every tensor that they make and none of
their arithmetic.

`installed()` gives them to transformers in the package's place, so that its own integration runs around them:
which models support the package, their flash classes and branches, casts, padded head sizes, unpadded and
packed rows. Source: flash-attn 2.8 flash_attn_interface.py (FlashAttnFunc, FlashAttnVarlenFunc),
csrc/flash_attn/flash_api.cpp (mha_fwd, mha_bwd, mha_varlen_bwd), bert_padding.py; transformers 5.23
modeling_flash_attention_utils.py. Left out: the split-key buffers of a forward with too few blocks to fill
the GPU (inference shapes).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.sdp import FLASH_2, refuses_flash2

NAME = FLASH_2


@dataclass(slots=True)
class Tokens:
    """What values would tell on a real device: padding tokens of the batch, documents packed into one row,
    entries that a search finds.
    """

    padding: int = 0
    documents: int = 1
    found: int | None = None


TOKENS = Tokens()


@contextmanager
def installed() -> Iterator[None]:
    """Within it, transformers finds the flash-attn package installed, and it is the functions below.

    Raises UsageError for an architecture that names another kernel in its place
    (`_compatible_flash_implementations`: gpt-oss has sinks).
    """
    from transformers import modeling_flash_attention_utils as utils

    def functions(implementation: str | None, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        if implementation != NAME:
            raise UsageError(
                f"transformers takes {implementation} here for {NAME}, which memplan does not model: use "
                "--attention eager"
            )
        return (
            flash_attn_func,
            flash_attn_varlen_func,
            None,
            pad_input,
            _finds(_real_tokens)(utils._unpad_input),
        )

    state = [
        name
        for name in vars(utils)
        if name == "_loaded_implementation" or (name.startswith("_") and name.endswith("_fn"))
    ]
    with ExitStack() as stack:
        for version in utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX.values():
            stack.enter_context(patch.dict(version, general_availability_check=lambda: True))
        for name in state:
            stack.enter_context(patch.object(utils, name, None))
        stack.enter_context(patch.object(utils, "_lazy_imports", functions))
        for name, read in _READ.items():
            stack.enter_context(patch.object(utils, name, read(getattr(utils, name))))
        for module in [
            module for name, module in sys.modules.items() if name.startswith("transformers.models.")
        ]:
            if "is_flash_attn_available" in vars(
                module
            ):  # Falcon, GPT-J and GPT-Neo import the rest where it said yes
                stack.enter_context(
                    patch.object(
                        module, "_flash_attention_forward", utils._flash_attention_forward, create=True
                    )
                )
        utils.lazy_import_flash_attention(NAME)  # a layer of an older kind asks for whatever is loaded
        yield


def nonzero(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The answer to `aten.nonzero` while transformers looks for real tokens or beginnings of documents, which
    are counted.
    """
    if not args[0].is_meta or TOKENS.found is None:
        return NotImplemented
    return torch.empty((TOKENS.found, args[0].dim()), dtype=torch.int64, device="meta")


def _real_tokens(*tensors: Tensor) -> int:
    return int(tensors[-1].numel()) - TOKENS.padding


def _finds(count: Callable[..., int]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*tensors: Tensor) -> Any:
            TOKENS.found = count(*tensors)
            try:
                return original(*tensors)
            finally:
                TOKENS.found = None

        return run

    return around


def _is_packed(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: original(*args, **kwargs) is not False and TOKENS.documents > 1


_READ: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "_get_unpad_data": _finds(_real_tokens),
    "prepare_fa_kwargs_from_position_ids": _finds(lambda positions: TOKENS.documents),
    "_is_packed_sequence": _is_packed,
}
"""Functions of transformers that read values: the original runs, for its tensors, and the batch's Tokens
answer.
"""


# The package's functions, by their names and the parameters that transformers looks for. --------------------


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """(B, S, H, D) of query, (B, S, K, D) of key and value -> (B, S, H, D)."""
    return _flash(q, k, v, None)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """Rows of all documents in one: (T, H, D) of query, (T, K, D) of key and value -> (T, H, D)."""
    return _flash(q, k, v, (cu_seqlens_q, cu_seqlens_k))


def pad_input(values: Tensor, indices: Tensor, batch: int, length: int) -> Tensor:
    """bert_padding.pad_input: rows scattered into zeros."""
    out: Tensor = _Scatter.apply(values, indices, batch * length)
    return out.view(batch, length, *values.shape[1:])


def _flash(query: Tensor, key: Tensor, value: Tensor, bounds: tuple[Tensor, Tensor] | None) -> Tensor:
    refused = refuses_flash2(
        (8, 0), str(query.dtype).removeprefix("torch."), query.shape[-1]
    )  # the card was asked before
    if refused:
        raise UsageError(refused)
    out: Tensor = _Flash.apply(query, key, value, *(bounds or ()))
    return out


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
    """FlashAttnFunc (no bounds) and FlashAttnVarlenFunc: outputs, what is saved, and the backward's
    accumulators.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *bounds: Tensor) -> Tensor:
        size = query.shape[-1]
        query, key, value = (_padded(t) for t in (query, key, value))
        read = [t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value)]
        out = torch.empty_like(read[0])
        del read
        heads = query.shape[-2]
        rows = (heads, query.shape[0]) if bounds else (query.shape[0], heads, query.shape[1])
        lse = torch.empty(rows, dtype=torch.float32, device=query.device)
        random_state = torch.empty(2, dtype=torch.int64, device=query.device)
        ctx.save_for_backward(query, key, value, out, lse, random_state, *bounds)
        return out[..., :size]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, _, _, _, *bounds = ctx.saved_tensors
        asked = grad.shape[-1]
        grad = _padded(grad)
        if grad.stride(-1) != 1:
            grad = grad.contiguous()
        made = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        heads, size = query.shape[-2], -(-query.shape[-1] // 32) * 32
        if bounds:
            rows = query.shape[0] + 128 * (bounds[0].shape[0] - 1)
        else:
            rows = -(-query.shape[1] // 128) * 128
        batch = () if bounds else tuple(query.shape[:1])
        device = query.device
        held = [torch.empty((*batch, heads, rows), dtype=torch.float32, device=device)]
        held.append(torch.empty((*batch, rows, heads, size), dtype=torch.float32, device=device))
        if key.shape[-2] != heads:
            expanded = (*key.shape[:-2], heads, key.shape[-1])
            held += [torch.empty(expanded, dtype=key.dtype, device=device) for _ in range(2)]
        del held
        return (*(t[..., :asked] for t in made), *(None for _ in bounds))


def _padded(tensor: Tensor) -> Tensor:
    """Head sizes are padded to a multiple of 8."""
    extra = -tensor.shape[-1] % 8
    return F.pad(tensor, (0, extra)) if extra else tensor
