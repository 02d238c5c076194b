"""Convolutions without cuDNN, whose plans are made by the real library from a real device: the tensors that
torch makes around its calls, and nothing that cuDNN allocates inside.

torch 2.14 ATen/native/Convolution.cpp (_convolution, convolution_backward) and cudnn/ConvShared.cpp
(cudnn_convolution, cudnn_convolution_backward): an output, and of each gradient that is asked for its own
tensor; inputs that are not contiguous are copied first.
"""

import torch

from memplan_inside import values

NOTE = "convolutions: their outputs and gradients are made, the workspaces of cuDNN's kernels are not seen"
KEPT = []


def install():
    """Take cuDNN's place for convolutions on the device."""
    if not torch.version.cuda:
        return
    library = torch.library.Library("aten", "IMPL")
    library.impl("cudnn_convolution", _forward, "CUDA", allow_override=True)
    library.impl("convolution_backward", _backward, "CUDA", allow_override=True)
    KEPT.append(library)


def _size(length, kernel, padding, stride, dilation):
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _forward(source, weight, padding, stride, dilation, groups, benchmark, deterministic, allow_tf32):
    values.notes[NOTE] = 1
    spatial = [
        _size(*each)
        for each in zip(source.shape[2:], weight.shape[2:], padding, stride, dilation, strict=True)
    ]
    return source.new_empty((source.shape[0], weight.shape[0], *spatial))


def _backward(
    gradient, source, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, mask
):
    values.notes[NOTE] = 1
    gradient, source = gradient.contiguous(), source.contiguous()
    of_source = torch.empty_like(source) if mask[0] else None
    of_weight = torch.empty_like(weight) if mask[1] else None
    of_bias = None
    if mask[2]:
        of_bias = gradient.sum([place for place in range(gradient.dim()) if place != 1])
    return of_source, of_weight, of_bias
