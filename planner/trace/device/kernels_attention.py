"""What the fused attention kernels allocate beyond their outputs: accumulators, statistics, workspaces.
Shapes are (B, H, S, D).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from memplan.planner.tables.sdp import EFFICIENT_GQA
from memplan.planner.trace.device.rule import OpCall, Workspace, bytes_of


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _contiguous(name: str, tensor: torch.Tensor) -> Iterator[Workspace]:
    """The backward calls .contiguous() on this tensor seen as (B, S, H, D)."""
    if not tensor.transpose(1, 2).is_contiguous():
        yield Workspace(f"contiguous {name}", bytes_of(tensor), before=True)


def flash_forward(c: OpCall) -> Iterator[Workspace]:
    """Split keys where a forward has too few blocks to fill the GPU: fp32 partial outputs and statistics
    (set_params_splitkv).
    """
    query, key = c.args[0], c.args[1]
    dropout = c.args[3] if len(c.args) > 3 else 0.0
    if dropout > 0:  # seen in the allocator's events of 2.11.0 to 2.14.1
        yield Workspace("random state", 16)
    splits = flash_splits(query, key, c.target.sms) if dropout == 0 else 1
    if splits > 1:
        batch, heads, rows, size = query.shape
        yield Workspace("split statistics", splits * batch * heads * rows * 4)
        yield Workspace("split outputs", splits * batch * heads * rows * _up(size, 32) * 4)


def flash_splits(query: torch.Tensor, key: torch.Tensor, sms: int) -> int:
    """num_splits_heuristic of flash_api.cpp: the fewest splits within 85 % of the best wave efficiency; 1
    where blocks fill the GPU.
    """
    batch, heads, rows, size = query.shape
    block_n = 256 if size <= 64 else 128 if size <= 128 else 64
    key_blocks = -(-key.shape[2] // block_n)
    blocks = batch * heads * -(-rows // 64)
    units = 2 * sms
    if blocks >= 0.8 * units:
        return 1
    most = min(128, units, key_blocks)
    efficiency: list[float] = []
    for splits in range(1, most + 1):
        eligible = splits == 1 or -(-key_blocks // splits) != -(-key_blocks // (splits - 1))
        waves = blocks * splits / units
        efficiency.append(waves / -(-blocks * splits // units) if eligible else 0.0)
    best = max(efficiency, default=0.0)
    return next((n + 1 for n, value in enumerate(efficiency) if value and value >= 0.85 * best), 1)


def flash_backward(c: OpCall) -> Iterator[Workspace]:
    """fp32 accumulator of dQ and row statistics, rows rounded to 128 and size to 32; per-head dK and dV under
    grouped heads.
    """
    grad, query, key = c.args[0], c.args[1], c.args[2]
    batch, heads, rows, size = query.shape
    yield from _contiguous("gradient", grad)
    if len(c.args) > 4:  # native/transformers/cuda/attention_backward.cu _flash_attention_backward
        yield from _contiguous("output", c.args[4])
    rounded = _up(rows, 128)
    yield Workspace("softmax statistics", batch * heads * rounded * 4, last=True)
    yield Workspace("dQ accumulator", batch * rounded * heads * _up(size, 32) * 4)
    if key.shape[1] != heads:
        expanded = batch * key.shape[2] * heads * size * key.element_size()
        yield Workspace("per-head dK", expanded)
        yield Workspace("per-head dV", expanded)


def efficient_forward(c: OpCall) -> Iterator[Workspace]:
    """kernel_forward.h: heads of more than 128 leave registers, so a 16-bit result is accumulated in an fp32
    buffer.
    """
    query, value = c.args[0], c.args[2]
    if query.element_size() == 2 and value.shape[-1] > 128:
        batch, heads, rows, _ = query.shape
        yield Workspace("fp32 output accumulator", batch * heads * rows * value.shape[-1] * 4)


def efficient_state(c: OpCall) -> tuple[int, ...]:
    """The outputs that lie on the host: seed and offset, until 2.12 in every call, from 2.14 on with dropout
    alone (seen in the allocator's events of 2.11.0, 2.12.0 and 2.14.1; 2.13 is taken for 2.12).
    """
    dropout = c.args[5] if len(c.args) > 5 else 0.0
    return (2, 3) if dropout > 0 or c.target.torch < EFFICIENT_GQA else ()


def efficient_backward(c: OpCall) -> Iterator[Workspace]:
    """delta, and a workspace: tiles that accumulate dQ across blocks of keys; dK and dV too where heads leave
    registers.
    """
    grad, query, key, value = c.args[:4]
    batch, heads, rows, size = query.shape
    yield from _contiguous("gradient", grad)
    if key.shape[1] != heads:  # 2.14: one dK and dV for each query head, summed over the group afterwards
        for name, tensor in (("dK", key), ("dV", value)):
            expanded = batch * heads * tensor.shape[2] * tensor.shape[3] * tensor.element_size()
            yield Workspace(f"per-head {name}", expanded, last=True)
    half = query.element_size() == 2
    registers = max(size, value.shape[-1]) <= 128
    delta = batch * heads * rows * 4
    if half and (registers or not (7, 0) <= c.target.capability < (7, 5)):  # kKernelComputesDelta
        yield Workspace("delta", delta)
    else:  # by aten ops: fp32 casts where needed, their product, its sum, the sum's transposed copy
        yield Workspace("fp32 gradient times output", grad.numel() * 4 * (3 if half else 1))
        yield Workspace("delta", 2 * delta)
    yield Workspace(
        "workspace",
        efficient_workspace(
            c.target.capability, half, (batch, heads, rows, key.shape[2], size, value.shape[-1])
        ),
    )


def efficient_workspace(
    capability: tuple[int, int], half: bool, shape: tuple[int, int, int, int, int, int]
) -> int:
    """Bytes of mem_eff_attention/kernel_backward.h Params::workspace_size for (B, H, S, T, D of keys, D of
    values), torch 2.11 to 2.15.

    The tile's shape hardly moves the sum, its total area does; heads that leave registers add dK and dV of a
    block of keys, as often as keys are split.
    """
    batch, heads, rows, keys, size, value_size = shape
    block_i, block_j, in_registers = _backward_tile(capability, half, max(size, value_size))
    tile = 16 + block_i * block_j * 4
    elements = -(-rows // block_i) * -(-size // block_j) * tile // 4
    if half and not in_registers:
        splits = max(1, min(-(-keys // block_j), 200 // (batch * heads)))
        elements += splits * block_j * (_up(size, block_i) + _up(value_size, block_i))
    return batch * heads * _up(elements, 4) * 4


def _backward_tile(capability: tuple[int, int], half: bool, largest: int) -> tuple[int, int, bool]:
    """(queries, keys, whether dK and dV stay in registers) of the kernel taken: the first of
    mem_eff_attention/kernels/cutlassB.h whose largest head size and shared memory fit. 64 x 64 up to head
    size 64, 128 rows beyond where the architecture allows, 128 columns where products are preloaded, for
    which GPUs with 99 KiB of shared memory a block have too little.
    """
    limit = 64 if largest <= 64 else 128 if largest <= 128 else 65536
    wide = capability >= (8, 0) or (capability >= (7, 0) and half)
    if half and limit == 128 and (capability in ((8, 6), (8, 9)) or capability[0] == 12):
        return (128, 64, True) if largest <= 96 and capability[0] == 8 else (64, 64, False)
    block_i = 128 if wide and limit > 64 else 64
    preloaded = half and limit == 128 and capability >= (8, 0)
    return block_i, 128 if preloaded else 64, half and limit <= block_i


def cudnn_forward(c: OpCall) -> Iterator[Workspace]:
    """What cuDNN asks for its own bookkeeping: nothing but on Hopper."""
    if c.target.capability[0] == 9:
        yield Workspace("workspace", 256)


def cudnn_backward(c: OpCall) -> Iterator[Workspace]:
    """One allocation: the frontend's fp32 dQ and row sums, and cuDNN's own part (cudnn_workspace)."""
    grad, query, key, value = c.args[:4]
    if grad.stride(-1) != 1:
        yield Workspace("contiguous gradient", bytes_of(grad))
    batch, heads, rows, size = query.shape
    own = cudnn_workspace(c.target.capability, query.element_size(), query.shape, key.shape, value.shape)
    yield Workspace(
        "fp32 dQ, row sums and cuDNN's own workspace", batch * heads * rows * (size + 1) * 4 + own
    )


def cudnn_workspace(
    capability: tuple[int, int], itemsize: int, query: Sequence[int], key: Sequence[int], value: Sequence[int]
) -> int:
    """Bytes that a cuDNN plan of the backward asks for beyond the frontend's share, given (B, H, S, D) of
    queries, keys and values.

    No source says it, but cuDNN itself does: plans can be built without a GPU, from a GPU's properties, and
    asked (cuDNN 9.19, 9.20,
    9.26 through cudnn-frontend 1.18, 1.22 and 1.23; head sizes 16 to 256, lengths 1 to 2,048, masks, both
      layouts, H200, B200, A100, A10,
    L40S, RTX 5090). Grouped heads take dK and dV of every query head; all engines but Hopper's and datacenter
    Blackwell's, which wants more than 128 queries and keys, dQ once more, in rows of eight. Random shapes
    were told the same: 39 on H200, 39 on B200, 14 on A100.
    """
    batch, heads, rows, size = query
    grouped = key[1] != heads or value[1] != heads
    expanded = batch * heads * key[2] * (size + value[3]) * itemsize if grouped else 0
    if capability[0] == 9:
        return expanded + 256
    if capability[0] == 10 and min(rows, key[2]) > 128:
        return expanded + (128 if grouped else 0)
    return expanded + batch * heads * _up(rows, 8) * size * 4 + 128
