"""What of torch's choice among kernels a dry run cannot leave as it is."""

import os

import torch

from memplan_inside import values

CUDNN_ATTENTION = 90
"""Compute capability, times ten, from which torch prefers cuDNN's attention (ATen/native/transformers/cuda/
sdp_utils.cpp, torch 2.11 to 2.14: cuDNN first where the device is Hopper or later). Its plans are made by the
real cuDNN from a real device.
"""


def without_cudnn_attention():
    """Switch cuDNN's attention off where torch would choose it, and say so."""
    capability = int(os.environ.get("MEMPLAN_STUB_CAPABILITY", "80"))
    if torch.version.cuda and capability >= CUDNN_ATTENTION:
        torch.backends.cuda.enable_cudnn_sdp(False)
        values.notes[
            f"cuDNN attention is switched off (compute capability {capability // 10}.{capability % 10}): "
            "where the GPU would take it, its workspace is not seen"
        ] = 1
