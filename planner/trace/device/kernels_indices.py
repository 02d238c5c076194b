"""What CUDA's sorts, scans and indexed reads and writes allocate beyond their outputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from memplan.planner.trace.device.rule import OpCall, Workspace, bytes_of

SMALL_SORT = 4096  # should_use_small_sort: so many elements are sorted in place


def sort(c: OpCall) -> Iterator[Workspace]:
    """In place up to SMALL_SORT elements, after a range is copied into the indices; beyond, by cub's radix
    sort, whose scratch holds keys and values once more. Few segments are sorted as one, with the segment
    beside each index (segmented_sort_pairs_by_full_sort).
    """
    source = c.args[0]
    dim = c.args[1] if len(c.args) > 1 and isinstance(c.args[1], int) else -1
    if source.dim() == 0 or source.numel() == 0:
        return
    along, size = source.shape[dim], source.element_size()
    segments, count = source.numel() // along, source.numel()
    if along <= SMALL_SORT:
        yield Workspace("range of indices", along * 8)
        return
    if segments == 1 or along >= 1_000_000:
        yield Workspace("range of indices", along * 8)
        yield Workspace("cub's keys and values", along * (size + 8))
    elif segments < 128:
        yield Workspace("indices and segments, twice", 2 * count * 8)
        yield Workspace("sorted keys", count * size)
        yield Workspace("cub's keys and values", count * (size + 8))
    else:
        yield Workspace("ranges of indices", count * 8)
        yield Workspace("cub's keys and values", count * (size + 8))


def topk(c: OpCall) -> Iterator[Workspace]:
    """What was selected is sorted in place; beyond SMALL_SORT of them through a sort, a gather and copies."""
    values, indices = c.outputs[0], c.outputs[1]
    if c.args[1] > SMALL_SORT:
        yield Workspace("sorted values and indices", bytes_of(values) + 2 * bytes_of(indices))


def embedding_backward(c: OpCall) -> Iterator[Workspace]:
    """Up to 3,072 indices: none but copies. Beyond: indices are sorted, equal ones make a segment, and sums
    of up to ten rows of a segment are kept in fp32. Where few rows are hit very often, they are summed by
    atomics in an fp32 copy of the result instead.

    cuda/Embedding.cu embedding_dense_backward_cuda; cuda/EmbeddingBackwardKernel.cu
    embedding_backward_cuda_kernel (its choice between the two is in the wheels of torch 2.11 to 2.15). cub's
    own scratch is left out (a few KiB).
    """
    grad, indices, rows = c.args[:3]
    if not grad.is_contiguous():
        yield Workspace("contiguous copy", bytes_of(grad), before=True)
    count, width = indices.numel(), grad.shape[-1]
    if count <= 3072:
        return
    segments, word = min(count, rows), indices.element_size()
    partial = count // 10 + segments
    yield Workspace("sorted and original indices", 2 * count * word, before=True)
    yield Workspace("segment tables", (count + 2 * segments + partial) * word)
    warps = -(-width // 32) * 32
    blocks = -(-segments * warps // min(warps, 1024))
    if blocks < 4 * c.target.sms and partial > 4 * blocks:
        yield Workspace("segments of partial sums", partial * word)
        yield Workspace("embedding gradients in fp32", rows * width * 4 if grad.element_size() < 4 else 0)
    else:
        yield Workspace("partial sums of embedding gradients", partial * width * max(4, grad.element_size()))


def scan(c: OpCall) -> Iterator[Workspace]:
    """cumsum and cumprod convert their input to the result's dtype (native/ReduceOps.cpp impl_func_cum_ops);
    scan_dim reads it contiguous.
    """
    source, out = c.args[0], c.outputs[0]
    if source.dtype != out.dtype:
        yield Workspace("input in the result's dtype", source.numel() * out.element_size())
    elif not source.is_contiguous():
        yield Workspace("contiguous copy", bytes_of(source), before=True)


def index(c: OpCall) -> Iterator[Workspace]:
    """Several index tensors whose strides differ once they are broadcast are made contiguous
    (native/TensorAdvancedIndexing.cpp AdvancedIndex).
    """
    given = [i for i in c.args[1] if isinstance(i, Tensor) and i.dtype != torch.bool]
    if len(given) < 2:
        return
    indices = torch.broadcast_tensors(*given)
    if len({index.stride() for index in indices}) > 1:
        for index in indices:
            if not index.is_contiguous():
                yield Workspace("contiguous indices", index.numel() * index.element_size(), before=True)


def index_put(c: OpCall) -> Iterator[Workspace]:
    """index_put_ with accumulate: linear indices, a range, both sorted, each int64 (cuda/Indexing.cu
    index_put_with_sort_kernel); cub's own tables are left out (a few KiB).
    """
    indices = [i for i in c.args[1] if isinstance(i, Tensor)]
    accumulate = len(c.args) > 3 and c.args[3]
    if not indices:
        return
    if not accumulate:
        yield from index(c)
        return
    each = max(i.numel() for i in indices) * 8
    for name in ("linear indices", "sorted indices", "their order", "range of indices"):
        yield Workspace(name, each, last=True)
    yield Workspace("cub's keys and values", 2 * each)
