"""Which backend scaled_dot_product_attention takes on CUDA: the filters of PyTorch's own selection, as a
table that both engines read.

Source: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (read at 2026-09, against the header of torch
2.13) and aten/src/ATen/native/transformers/sdp_utils_cpp.h. Filters about nested tensors, ROCm and disabled
backends are left out: they do not occur in the training steps modeled here. Order: flash, efficient, math;
on Hopper and datacenter Blackwell cuDNN comes first (check_prefer_cudnn_attention: cuDNN newer than 9.15,
which torch's wheels since 2.11 ship: 9.19 in 2.11, 9.20 in 2.13). Those for CUDA 12 ship an older cuDNN
(PyTorch issue 169849) and take flash there: the two save the same tensors. cuDNN's filters differ between
releases and were read in the machine code of the wheels for CUDA 13 too (check_cudnn_tensor_shapes, parts of
can_use_cudnn_attention).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

Attention = Literal[
    "eager", "sdpa", "sdpa-flash", "sdpa-efficient", "sdpa-math", "sdpa-cudnn", "flash_attention_2"
]
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
"""Setup.attention: transformers' own names, and `sdpa-` with the one backend that is left enabled."""
FLASH_2: Attention = "flash_attention_2"
TORCH = (2, 13)
"""The release that is asked about where none is named."""
EFFICIENT_GQA = (2, 14)
"""From this release on the memory-efficient kernel takes grouped heads (pytorch PR 191085), and a single head
of keys and values passes the filters of flash and efficient without enable_gqa: sdp_utils_cpp.h of 2.14.1's
wheel has check_batch_size_and_num_heads_dense's parameter supports_mqa, those of 2.11 to 2.13 do not; asked
of 2.12.0 and 2.14.1 by _fused_sdp_choice.
"""
BACKENDS = ("cudnn", "flash", "efficient", "math")
HALF = ("float16", "bfloat16")
FORCED = {f"sdpa-{backend}": backend for backend in BACKENDS}
"""Setup.attention -> the one backend that `torch.nn.attention.sdpa_kernel` would leave enabled."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What one call of scaled_dot_product_attention asks, on a compute capability.

    heads and sizes: of query, key and value. dtype: theirs, or "mixed".
    """

    capability: tuple[int, int]
    dtype: str
    heads: tuple[int, int, int]
    sizes: tuple[int, int, int]
    masked: bool = False
    dropout: float = 0.0
    causal: bool = False
    gqa: bool = False
    trains: bool = True
    square: bool = True  # as many queries as keys
    torch: tuple[int, int] = TORCH  # the release whose filters are asked
    unfit: frozenset[str] = (
        frozenset()
    )  # filters that the tensors' layout fails (the trace reads them; none in an ordinary call)


Check = Callable[[Asked], bool]


def _layout(name: str) -> Check:
    """A filter about dimensions, strides or lengths, which only real tensors can fail."""

    def check(a: Asked) -> bool:
        return name not in a.unfit

    check.__name__ = f"_{name}"
    return check


_four_dimensions, _same_batch, _not_empty = (
    _layout("four_dimensions"),
    _layout("same_batch"),
    _layout("not_empty"),
)
_unit_strides, _unit_strides_or_size_1 = _layout("unit_strides"), _layout("unit_strides_or_size_1")
_mask_shape, _cudnn_lengths = _layout("mask_shape"), _layout("cudnn_lengths")


def _equal_heads(a: Asked) -> bool:
    return len(set(a.heads)) == 1


def _grouped(a: Asked) -> bool:
    """check_grouped_query_attention: key and value alike, dividing the query's heads."""
    q, k, v = a.heads
    return k == v and q % k == 0


def _one_for_all(a: Asked) -> bool:
    """supports_mqa: a single head of keys and values serves all queries, asked for or not."""
    q, k, v = a.heads
    return a.torch >= EFFICIENT_GQA and k == v == 1 and q > 0


def _heads_flash(a: Asked) -> bool:
    return _grouped(a) if a.gqa else _equal_heads(a) or _one_for_all(a)


def _heads_cudnn(a: Asked) -> bool:
    q, k, v = a.heads
    return (q % k == 0 and q % v == 0) if a.gqa else _equal_heads(a)


def _heads_efficient(a: Asked) -> bool:
    return _grouped(a) if a.gqa and a.torch >= EFFICIENT_GQA else _equal_heads(a) or _one_for_all(a)


def _low_precision(a: Asked) -> bool:
    return a.dtype in (HALF if a.capability >= (8, 0) else ("float16",))


def _efficient_dtypes(a: Asked) -> bool:
    return a.dtype in (("float16", "float32") if a.capability < (8, 0) else (*HALF, "float32"))


def _ampere_to_blackwell(a: Asked) -> bool:
    return (8, 0) <= a.capability <= (12, 1)


def _no_mask(a: Asked) -> bool:
    return not a.masked


def _flash_head_size(a: Asked) -> bool:
    return len(set(a.sizes)) == 1 and a.sizes[0] <= 256


def _flash_trains_head_size(a: Asked) -> bool:
    """sm86 to sm89 and sm120: no backward for sizes in (192, 224], nor in (224, 256] with dropout."""
    size = a.sizes[0]
    if not a.trains or not ((8, 6) <= a.capability <= (8, 9) or (12, 0) <= a.capability <= (12, 1)):
        return True
    return size <= 192 or (a.dropout == 0 and size > 224)


def _square_if_causal(a: Asked) -> bool:
    return not a.causal or a.square


def gemm_alignment(a: Asked) -> int:
    """minimum_gemm_alignment: elements that head sizes must be a multiple of."""
    half = a.dtype in HALF
    tensor_cores = a.capability >= (8, 0) or (a.capability >= (7, 0) and half)
    least = 4 if a.capability >= (8, 0) else 1
    return max(least, 128 // (16 if half else 32)) if tensor_cores else least


def _efficient_head_size(a: Asked) -> bool:
    q, k, v = a.sizes
    step = gemm_alignment(a)
    return q == k and q % step == 0 and q > 0 and v % step == 0 and v > 0


def _cudnn_dropout(a: Asked) -> bool:
    """check_cudnn_dropout, in torch since 2.12."""
    return a.torch < (2, 12) or (a.dropout * 16).is_integer()


def _cudnn_shapes(a: Asked) -> bool:
    """check_cudnn_tensor_shapes: head sizes are multiples of 8 up to 128; up to 256 on Hopper (cuDNN 9.10),
    and 192 with 128 for values on datacenter Blackwell (cuDNN 9.11). Alike in torch 2.11 and 2.13; from 2.14
    on Blackwell takes more sizes, which is not modeled.
    """
    size, _, value = a.sizes
    limit = (
        256
        if a.capability == (9, 0)
        else 192
        if a.capability[0] == 10 and (size, value) == (192, 128)
        else 128
    )
    return max(size, value) <= limit and size % 8 == 0 and value % 8 == 0


CHECKS: dict[str, tuple[Check, ...]] = {
    "flash": (
        _four_dimensions,
        _no_mask,
        _flash_head_size,
        _ampere_to_blackwell,
        _flash_trains_head_size,
        _square_if_causal,
        _low_precision,
        _same_batch,
        _heads_flash,
        _not_empty,
        _unit_strides_or_size_1,
    ),
    "efficient": (
        _four_dimensions,
        _efficient_head_size,
        _not_empty,
        _unit_strides,
        _same_batch,
        _heads_efficient,
        _efficient_dtypes,
    ),
    "cudnn": (
        _four_dimensions,
        _low_precision,
        _mask_shape,
        _ampere_to_blackwell,
        _cudnn_dropout,
        _not_empty,
        _unit_strides_or_size_1,
        _same_batch,
        _heads_cudnn,
        _cudnn_shapes,
        _cudnn_lengths,
    ),
    "math": (),
}


def prefers_cudnn(capability: tuple[int, int]) -> bool:
    """check_prefer_cudnn_attention: compute capabilities 9.0, 10.0 and 10.3."""
    return capability in ((9, 0), (10, 0), (10, 3))


def choose(asked: Asked, forced: str | None = None) -> str | None:
    """The backend CUDA takes: "cudnn", "flash", "efficient" or "math"; with `forced` (what `sdpa_kernel`
    allows) that one or None.
    """
    order = (forced,) if forced else BACKENDS if prefers_cudnn(asked.capability) else BACKENDS[1:]
    return next((backend for backend in order if reason(asked, backend) is None), None)


def reason(asked: Asked, backend: str) -> str | None:
    """The first filter that refuses this call, None where the backend takes it."""
    return next((check.__name__.lstrip("_") for check in CHECKS[backend] if not check(asked)), None)


WHY = {
    "no_mask": "it takes no mask, as padding and sliding windows need one",
    "low_precision": "it takes 16-bit tensors only, bfloat16 from compute capability 8.0 on",
    "ampere_to_blackwell": "it needs compute capability 8.0 or later",
    "flash_head_size": "head sizes of query, key and value must be equal, and at most 256",
    "flash_trains_head_size": "it has no backward for this head size here",
    "cudnn_shapes": "head sizes must be multiples of 8 up to 128, or 256 on Hopper",
}
"""What a filter wants, in words, where its name alone says too little."""


def refusal(asked: Asked, backend: str) -> str:
    """Why a forced backend cannot run this call, and the next move."""
    major, minor = asked.capability
    found = str(reason(asked, backend))
    heads, size = asked.heads[0], asked.sizes[0]
    return (
        f"attention sdpa-{backend} cannot run here: torch's filter '{found}' refuses {heads} heads of size "
        f"{size} in {asked.dtype} on "
        f"compute capability {major}.{minor}{f' ({WHY[found]})' if found in WHY else ''}; use --attention "
        "sdpa"
    )


def refuses_flash2(capability: tuple[int, int], dtype: str, size: int = 0) -> str | None:
    """Why the flash-attn package cannot run, None where it can: flash-attn 2.8 csrc/flash_attn/flash_api.cpp
    mha_fwd's checks.
    """
    if capability < (8, 0):
        return (
            "flash_attention_2 needs compute capability 8.0 or later, found "
            f"{capability[0]}.{capability[1]}: use --attention sdpa"
        )
    if dtype not in HALF:
        return (
            f"flash_attention_2 takes float16 or bfloat16, found {dtype}: use --autocast bfloat16, --dtype "
            "bfloat16 or --attention sdpa"
        )
    if size > 256:
        return f"flash_attention_2 takes head sizes up to 256, found {size}: use --attention sdpa"
    return None


def refuses_on_cpu(attention: str, dropout: float = 0.0) -> str | None:
    """Why an attention setting cannot run on the CPU, None where it can. torch 2.13
    aten/src/ATen/native/transformers/sdp_utils_cpp.cpp: of the backends there are flash, without dropout, and
    math.
    """
    backend = FORCED.get(attention)
    if (
        attention != "flash_attention_2"
        and backend not in ("efficient", "cudnn")
        and not (backend == "flash" and dropout)
    ):
        return None
    return (
        f"attention {attention} cannot run on the CPU{' with dropout' if backend == 'flash' else ''}: use "
        "--attention sdpa"
    )
