"""What the kernels of towers take: convolutions of patches, pictures put in the place of their tokens, and
the small lists that say which window or picture a patch is of.

Convolutions are cuDNN's: torch tries the engines that its heuristics name, in their order, takes each one's
workspace from the caching allocator, and goes on to the next where that runs out of memory
(native/cudnn/Conv_v8.cpp run_single_conv, try_configs, run_conv_plan; benchmark off). Which engine is first,
and what it wants, is NVIDIA's. torch 2.11 to 2.15 pin cuDNN 9.19 and later, so that 3-D convolutions of half
precision are cuDNN's too (native/Convolution.cpp use_cudnn leaves out 9.8 to 9.14).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from memplan.planner.trace.device.rule import OpCall, Workspace, bytes_of

SINGLE = 4
"""Bytes of the precision that cuDNN adds up in (native/cudnn/Conv_v8.cpp getConvDescriptor)."""


def convolution(c: OpCall) -> Iterator[Workspace]:
    """Inputs that are not contiguous are copied (native/Convolution.cpp _convolution, cudnn/ConvShared.cpp
    cudnn_convolution_forward).
    """
    for tensor in c.args[:2]:
        if not tensor.is_contiguous():
            yield Workspace("contiguous copy", bytes_of(tensor), before=True)


def reach(c: OpCall) -> int:
    """Bytes of the largest workspace among cuDNN's documented algorithms (cudnnConvolutionFwdAlgo_t and its
    likes): the input as a matrix of columns, and input, weight and output in another layout, all in single
    precision; where every stride is one, also their Fourier transforms. 0 for a kernel to each channel,
    which is torch's own but in float16 (native/Convolution.cpp use_cudnn_depthwise).
    """
    given = [arg for arg in c.args[:3] if isinstance(arg, Tensor) and arg.dim() > 1]
    *_, source, weight = given
    backward = len(given) == 3
    out = c.args[0] if backward else c.outputs[0]
    groups = max(1, source.shape[1] // weight.shape[1])
    if groups == source.shape[1] > 1 and source.dtype != torch.float16:
        return 0
    positions = out.numel() // out.shape[1]
    columns = positions * math.prod(weight.shape[1:]) * groups
    floats = columns + source.numel() + weight.numel() + out.numel()
    if set(c.args[4 if backward else 3]) == {1} and math.prod(weight.shape[2:]) > 1:
        each = positions // source.shape[0]
        channels = weight.shape[0] * weight.shape[1]
        floats += 2 * each * (channels + source.shape[0] * (source.shape[1] + out.shape[1]))
    return int(SINGLE * floats)


def masked_scatter(c: OpCall) -> Iterator[Workspace]:
    """Where each masked element's value stands is a running sum of the mask, of int64 for every element of
    the result (native/cuda/IndexKernel.cu launch_masked_scatter_kernel);
    left out: cub's tile states, a fiftieth of a byte an element.
    """
    result, mask, source = c.outputs[0], c.args[1], c.args[2]
    yield Workspace("running sum of the mask", 8 * result.numel(), last=True)
    if not (mask.is_contiguous() and mask.numel() == result.numel()):
        yield Workspace("contiguous mask", result.numel())
    if not source.is_contiguous():
        yield Workspace("contiguous copy", bytes_of(source))


def masked_scatter_backward(c: OpCall) -> Iterator[Workspace]:
    """The gradient's masked elements are selected by their indices, an int64 for each and each dimension
    (native/TensorAdvancedIndexing.cpp masked_scatter_backward_symint, cuda/IndexKernel.cpp, cuda/Nonzero.cu).
    The mask's contiguous copy is gone before the result comes: only what is more than that counts.
    """
    gradient, mask, result = c.args[0], c.args[1], c.outputs[0]
    yield Workspace("indices of masked elements", 8 * gradient.dim() * result.numel(), before=True)
    if not (mask.is_contiguous() and mask.numel() == gradient.numel()):
        yield Workspace("contiguous mask", gradient.numel() - bytes_of(result), before=True)


def unique(c: OpCall) -> Iterator[Workspace]:
    """All values sorted, and cub's keys beside them (native/cuda/Unique.cu, UniqueCub.cu)."""
    yield Workspace("sorted values", bytes_of(c.args[0]), before=True)
    yield Workspace("cub's keys", bytes_of(c.args[0]), before=True)


def repeat_interleave(c: OpCall) -> Iterator[Workspace]:
    """Running sums of the repeats (native/Repeat.h repeat_interleave_common)."""
    yield Workspace("running sums", 8 * c.args[0].numel(), before=True)
