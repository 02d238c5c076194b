"""Which ops autocast casts, and how: the tables of CUDA and of the CPU.

Which: those for which the installed torch has an autocast kernel of that device; its dispatcher is asked.
How: from aten/src/ATen/autocast_mode.h (CUDA; torch 2.13) and aten/src/ATen/autocast_mode.cpp (CPU).
"""

from __future__ import annotations

from functools import cache

import torch

_KEYS = {"cuda": "AutocastCUDA", "cpu": "AutocastCPU"}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


LOWER = _names("""
    _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution prelu
    addmm addmv addr matmul einsum mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot
    _thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    _scaled_dot_product_flash_attention scaled_dot_product_attention cudnn_convolution cudnn_convolution_transpose
    _addmm_activation mkldnn_rnn_layer mkldnn_reorder_linear_weight _native_multi_head_attention
""")
"""Inputs are cast to the autocast dtype."""
SETS_DTYPE = _names("prod softmax log_softmax cumprod cumsum linalg_vector_norm linalg_matrix_norm sum")
"""CUDA only: computed in fp32 through the op's own dtype argument, where none was given."""
APPENDS_DTYPE = _names("norm")
"""CUDA only: as SETS_DTYPE, through another overload."""
PROMOTES = {
    "cuda": _names(
        "addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add"
    ),
    "cpu": _names("stack cat index_copy"),
}
"""Inputs are cast to the widest floating dtype among them. Every other op that a device casts runs in fp32.
"""


def policy_of(device: str, op: str) -> str:
    """'lower', 'sets_dtype', 'appends_dtype', 'promotes' or 'fp32': how a device's autocast treats an op (its
    name without overload).
    """
    if op in LOWER:
        return "lower"
    if op in PROMOTES[device]:
        return "promotes"
    if device == "cuda" and op in SETS_DTYPE:
        return "sets_dtype"
    if device == "cuda" and op in APPENDS_DTYPE:
        return "appends_dtype"
    return "fp32"


@cache
def cast_ops(device: str) -> tuple[str, ...]:
    """Every aten op that the installed torch casts on a device, as 'name' or 'name.overload', sorted."""
    key = _KEYS[device]
    names = (name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::"))
    return tuple(
        sorted(
            name.removeprefix("aten::")
            for name in names
            if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
        )
    )
