"""RULES: op -> what its CUDA kernel allocates unseen. One row an op, each with the file that says so. See
kernels.py for the terms.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from memplan.planner.trace.device.kernels_attention import (
    cudnn_backward,
    cudnn_forward,
    efficient_backward,
    efficient_forward,
    efficient_state,
    flash_backward,
    flash_forward,
)
from memplan.planner.trace.device.kernels_bitsandbytes import (
    gemm_4bit,
    gemm_4bit_product,
    int8_scaled_mm,
    int8_vectorwise_quant,
)
from memplan.planner.trace.device.kernels_indices import (
    embedding_backward,
    index,
    index_put,
    scan,
    sort,
    topk,
)
from memplan.planner.trace.device.kernels_products import (
    copies_for_cublas,
    grouped,
    grouped_product,
    product,
)
from memplan.planner.trace.device.kernels_vision import (
    convolution,
    masked_scatter,
    masked_scatter_backward,
    reach,
    repeat_interleave,
    unique,
)
from memplan.planner.trace.device.reduction import converted, reduction
from memplan.planner.trace.device.rule import KernelRule, OpCall, Workspace, bytes_of

# Softmax, normalization, embedding --------------------------------------------------------------------------


def _softmax_backward(c: OpCall) -> Iterator[Workspace]:
    """softmax_backward_cuda_out: grad * output, whole, in the product's dtype (fp32 under half_to_float),
    which is not grad_input's.
    """
    grad, output = c.args[0], c.args[1]
    dtype = torch.promote_types(grad.dtype, output.dtype)
    yield Workspace("grad * output", output.numel() * dtype.itemsize)


def _contiguous_first(*positions: int) -> Any:
    """The kernel calls .contiguous() on these arguments."""

    def finder(c: OpCall) -> Iterator[Workspace]:
        for position in positions:
            tensor = c.args[position] if position < len(c.args) else None
            if isinstance(tensor, Tensor) and not tensor.is_contiguous():
                yield Workspace("contiguous copy", bytes_of(tensor), before=True)

    return finder


def _safe_softmax(c: OpCall) -> Iterator[Workspace]:
    """A softmax, the fully masked rows found (one byte an element, then a row), and set to zero in place."""
    out = c.outputs[0]
    yield Workspace("masked elements", out.numel(), last=True)
    yield Workspace("masked rows", out.numel() // max(1, out.shape[-1]), last=True)
    yield Workspace("zero", out.element_size())


def _logsumexp(c: OpCall) -> Iterator[Workspace]:
    """The input less its maxima is exponentiated in a tensor of its own."""
    yield Workspace("shifted exponentials", bytes_of(c.args[0]))


def _exponential(c: OpCall) -> Iterator[Workspace]:
    """One draw of each row: the probabilities are divided by as many exponential numbers, in place of these."""
    if c.outputs[0].shape[-1] == 1:
        yield Workspace("exponential noise", bytes_of(c.args[0]))


def _svd(c: OpCall) -> Iterator[Workspace]:
    """gesvdj overwrites a copy of the matrix in columns. Left out: what cuSOLVER itself asks for (its
    bufferSize), which NVIDIA does not say; gesvd's tensors, where gesvdj does not converge.
    """
    yield Workspace("info", 4)
    yield Workspace("matrix in columns", bytes_of(c.args[0]))


# Lists ------------------------------------------------------------------------------------------------------


def _foreach_norm(c: OpCall) -> Iterator[Workspace]:
    """foreach_tensor_norm_cuda: one fp32 partial per chunk of 65,536 elements of the largest tensor, for
    every tensor.
    """
    tensors = c.args[0]
    chunks = max((-(-t.numel() // 65536) for t in tensors), default=0)
    yield Workspace("partial norms", len(tensors) * chunks * 4, before=True)


# The table --------------------------------------------------------------------------------------------------

_LOOPS = KernelRule(
    "native/cuda/CUDALoops.cuh (torch 2.13): elementwise kernels cast in registers and allocate nothing"
)
_FACTORY = KernelRule("native/cuda/TensorFactories.cu, native/TensorFactories.cpp: the output alone")
_LISTS = KernelRule("native/cuda/MultiTensorApply.cuh (torch 2.13): chunk tables travel in kernel arguments")
_GEMM = KernelRule("native/cuda/Blas.cpp, cuda/CublasHandlePool.cpp", copies_for_cublas, matmul=product)
_REDUCE = KernelRule("native/cuda/Reduce.cuh (torch 2.13): setReduceConfig, global_memory_size", reduction)
_GATHER = KernelRule("native/cuda/IndexKernel.cu, native/cuda/ScatterGatherKernel.cu: the output alone")
_BNB_UPDATE = KernelRule("bitsandbytes 0.50 backends/cuda/ops.py: in place, through raw pointers")


def _names(text: str) -> list[str]:
    return text.split()


_POINTWISE = _names("""
    add sub mul div neg abs sign pow sqrt rsqrt reciprocal exp exp2 expm1 log log1p log2 sin cos tan tanh sigmoid silu gelu relu leaky_relu
    elu softplus hardswish hardsigmoid mish erf floor ceil round trunc frac clamp clamp_min clamp_max maximum minimum where masked_fill
    eq ne lt le gt ge logical_not logical_and logical_or logical_xor bitwise_not bitwise_and bitwise_or bitwise_xor isnan isinf isfinite
    addcmul addcdiv lerp fmod remainder floor_divide atan2 polar rsub square tril triu lift_fresh fill zero copy _to_copy clone to
    silu_backward gelu_backward tanh_backward sigmoid_backward threshold_backward elu_backward softplus_backward hardswish_backward
    mish_backward leaky_relu_backward native_dropout_backward bernoulli normal uniform random glu glu_backward
""")
_FACTORIES = _names("""
    empty empty_like empty_strided new_empty new_empty_strided zeros zeros_like new_zeros ones ones_like new_ones full full_like new_full
    arange scalar_tensor eye linspace rand randn randint rand_like randn_like
""")
_FOREACH = _names("""
    _foreach_add _foreach_sub _foreach_mul _foreach_div _foreach_sqrt _foreach_lerp _foreach_addcmul _foreach_addcdiv _foreach_neg
    _foreach_copy _foreach_zero _foreach_reciprocal _foreach_pow _foreach_abs _foreach_maximum _foreach_clamp_max _foreach_sign
    _fused_adam _fused_adamw _fused_sgd _fused_adagrad _amp_foreach_non_finite_check_and_unscale
""")
_NOTHING = _names("_unsafe_view set_ _local_scalar_dense _amp_update_scale_")
_REDUCTIONS = _names("amax amin max min argmax argmin norm linalg_vector_norm any all _is_all_true")

RULES: dict[str, KernelRule] = {
    **{f"aten::{name}{end}": _LOOPS for name in _POINTWISE for end in ("", "_")},
    **{f"aten::{name}": _FACTORY for name in _FACTORIES},
    **{f"aten::{name}{end}": _LISTS for name in _FOREACH for end in ("", "_")},
    **{
        f"aten::{name}": _GEMM
        for name in ("mm", "addmm", "bmm", "baddbmm", "addmv", "mv", "dot", "_addmm_activation")
    },
    **{
        f"aten::{name}": KernelRule(
            "native/TensorShape.cpp, native/cuda/CUDAScalar.cu, native/cuda/AmpKernels.cu: views, host "
            "numbers, in place"
        )
        for name in _NOTHING
    },
    **{f"aten::{name}": _REDUCE for name in _REDUCTIONS},
    **{
        f"aten::{name}": KernelRule(
            "native/ReduceOpsUtils.h make_reduction, native/cuda/Reduce.cuh", converted
        )
        for name in ("sum", "mean", "prod")
    },
    **{
        f"aten::{name}": _GATHER
        for name in (
            "gather",
            "index_select",
            "embedding",
            "scatter",
            "scatter_",
            "scatter_add",
            "scatter_add_",
            "index_add",
            "index_add_",
            "slice_backward",
            "select_backward",
        )
    },
    "aten::index": KernelRule("native/cuda/IndexKernel.cu, native/TensorAdvancedIndexing.cpp", index),
    **{
        f"aten::{name}": KernelRule(
            "native/Convolution.cpp, native/cudnn/ConvShared.cpp, native/cudnn/Conv_v8.cpp run_conv_plan",
            convolution,
            reach=reach,
            status="library",
        )
        for name in ("convolution", "convolution_backward")
    },
    "aten::masked_scatter": KernelRule(
        "native/cuda/IndexKernel.cpp, native/cuda/IndexKernel.cu (its sizes: a dry run of torch 2.14)",
        masked_scatter,
    ),
    "aten::masked_scatter_backward": KernelRule(
        "native/TensorAdvancedIndexing.cpp, native/cuda/IndexKernel.cpp, native/cuda/Nonzero.cu",
        masked_scatter_backward,
    ),
    "aten::_unique2": KernelRule("native/cuda/Unique.cu, native/cuda/UniqueCub.cu", unique),
    "aten::unique_consecutive": KernelRule(
        "native/cuda/Unique.cu: the outputs as long as the input; left out: cub's scratch, a KiB"
    ),
    "aten::repeat_interleave": KernelRule("native/Repeat.h, native/cuda/Repeat.cu", repeat_interleave),
    "aten::repeat": KernelRule("native/TensorShape.cpp repeat: filled and copied into, the output alone"),
    **{
        f"aten::{name}": KernelRule(
            "native/cuda/AveragePool2d.cu, native/cuda/UpSample*.cu: inputs made contiguous",
            _contiguous_first(0),
        )
        for name in (
            "avg_pool2d",
            "avg_pool2d_backward",
            *(
                f"upsample_{way}2d{end}"
                for way in ("nearest", "bilinear", "bicubic")
                for end in ("", "_backward")
            ),
            *(f"_upsample_{way}2d_aa{end}" for way in ("bilinear", "bicubic") for end in ("", "_backward")),
        )
    },
    "aten::bucketize": KernelRule("native/cuda/Bucketization.cu: the output alone"),
    "aten::cat": KernelRule("native/cuda/Shape.cu: the output alone"),
    "aten::log_sigmoid_forward": KernelRule(
        "native/cuda/ActivationLogSigmoidKernel.cu, native/Activation.cpp: the output; its buffer is the CPU's"
    ),
    "aten::xlogy": KernelRule("native/BinaryOps.cpp: a TensorIterator's output alone"),
    "aten::stack": KernelRule("native/TensorShape.cpp: a cat of views"),
    "aten::_softmax": KernelRule("native/cuda/SoftMax.cu host_softmax", _contiguous_first(0)),
    "aten::_log_softmax": KernelRule("native/cuda/SoftMax.cu host_softmax", _contiguous_first(0)),
    "aten::_softmax_backward_data": KernelRule(
        "native/cuda/SoftMax.cu softmax_backward_cuda_out (measured on T4: cuda-vs-meta survey)",
        _softmax_backward,
        status="measured",
    ),
    "aten::_log_softmax_backward_data": KernelRule(
        "native/cuda/SoftMax.cu host_softmax_backward", _contiguous_first(0, 1)
    ),
    "aten::multinomial": KernelRule("native/Distributions.cpp multinomial_out (torch 2.13)", _exponential),
    "aten::native_dropout": KernelRule("native/cuda/Dropout.cu dropout_cuda: the mask first", order=(1, 0)),
    "aten::_safe_softmax": KernelRule("native/transformers/attention.cpp _safe_softmax", _safe_softmax),
    "aten::constant_pad_nd": KernelRule("native/PadNd.cpp: filled and copied into, the output alone"),
    "aten::flip": KernelRule("native/TensorTransformations.cpp flip: the output alone"),
    "aten::cumsum": KernelRule(
        "native/cuda/ScanUtils.cuh scan_dim (torch 2.13); left out: cub's scratch in one dimension",
        scan,
    ),
    "aten::sort": KernelRule(
        "native/cuda/Sort.cpp sort_cuda_kernel, native/cuda/Sort.cu launch_stable_sort_kernel", sort
    ),
    "aten::topk": KernelRule(
        "native/cuda/TensorTopK.cpp topk_out_cuda; left out: selection by many blocks, of rows beyond 20,000",
        topk,
    ),
    "aten::kthvalue": KernelRule(
        "native/cuda/Sorting.cpp kthvalue_out_impl_cuda: selection by radix, the outputs alone"
    ),
    "aten::histc": KernelRule(
        "native/cuda/SummaryOps.cu CUDA_tensor_histogram: counted in shared memory, into the output"
    ),
    "aten::_grouped_mm": KernelRule(
        "native/cuda/GroupedBlas.cpp, native/cuda/GroupMM.cu; elsewhere native/GroupedMMUtils.h "
        "_grouped_mm_fallback: one product a group into the output",
        grouped,
        matmul=grouped_product,
    ),
    **{
        f"transformers::grouped_mm_fallback{end}": KernelRule(
            "transformers 5.24 integrations/moe.py: one product a group into zeros", matmul=product
        )
        for end in ("", "_backward")
    },
    "aten::nll_loss_forward": KernelRule("native/cuda/Loss.cu: output and total weight"),
    "aten::nll_loss_backward": KernelRule("native/cuda/Loss.cu: the gradient alone"),
    "aten::native_layer_norm": KernelRule("native/cuda/layer_norm_kernel.cu", _contiguous_first(0)),
    "aten::native_layer_norm_backward": KernelRule(
        "native/cuda/layer_norm_kernel.cu; left out: GammaBetaBackward's partial buffers (up to 4 MiB, "
        "beyond 65,536 rows of narrow "
        "layers only)",
        _contiguous_first(0),
    ),
    "aten::embedding_dense_backward": KernelRule(
        "native/cuda/Embedding.cu, native/cuda/EmbeddingBackwardKernel.cu", embedding_backward
    ),
    "aten::_linalg_svd": KernelRule(
        "native/BatchLinearAlgebra.cpp _linalg_svd_out, native/cuda/linalg/BatchLinearAlgebraLib.cpp "
        "svd_cusolver, driver gesvdj",
        _svd,
    ),
    "aten::_foreach_norm": KernelRule("native/cuda/ForeachReduceOp.cu", _foreach_norm),
    **{
        f"aten::{name}": KernelRule("native/cuda/Indexing.cu", index_put)
        for name in ("index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")
    },
    "aten::logsumexp": KernelRule("native/ReduceOps.cpp logsumexp_out_impl", _logsumexp),
    "aten::_scaled_dot_product_flash_attention": KernelRule(
        "native/transformers/cuda/flash_attn/flash_api.cpp mha_fwd", flash_forward
    ),
    "aten::_scaled_dot_product_flash_attention_backward": KernelRule(
        "native/transformers/cuda/flash_attn/flash_api.cpp mha_bwd", flash_backward
    ),
    "aten::_scaled_dot_product_efficient_attention": KernelRule(
        "native/transformers/cuda/attention.cu _efficient_attention_forward: the random state first",
        efficient_forward,
        on_host=efficient_state,
        order=(2, 3, 0, 1),
    ),
    "aten::_scaled_dot_product_efficient_attention_backward": KernelRule(
        "native/transformers/cuda/attention_backward.cu, mem_eff_attention/kernel_backward.h workspace_size",
        efficient_backward,
    ),
    "aten::_scaled_dot_product_cudnn_attention": KernelRule(
        "native/cudnn/MHA.cpp run_cudnn_SDP_fprop; cuDNN's answer to get_workspace_size "
        "(kernels_attention.py)",
        cudnn_forward,
    ),
    "aten::_scaled_dot_product_cudnn_attention_backward": KernelRule(
        "native/cudnn/MHA.cpp run_cudnn_SDP_bprop; cudnn-frontend 1.18 "
        "node/scaled_dot_product_flash_attention.h "
        "get_fe_workspace_size_node; cuDNN's answer to get_workspace_size (kernels_attention.py)",
        cudnn_backward,
    ),
    "bitsandbytes::gemm_4bit": KernelRule(
        "bitsandbytes 0.50 backends/cuda/ops.py _dequant_linear_fallback", gemm_4bit, matmul=gemm_4bit_product
    ),
    "bitsandbytes::dequantize_4bit": KernelRule("bitsandbytes 0.50 backends/cuda/ops.py: the output alone"),
    "bitsandbytes::dequantize_blockwise": KernelRule(
        "bitsandbytes 0.50 backends/cuda/ops.py: the output alone"
    ),
    "bitsandbytes::quantize_4bit": KernelRule(
        "bitsandbytes 0.50 backends/cuda/ops.py: the scales first", _contiguous_first(0), order=(1, 0)
    ),
    "bitsandbytes::quantize_blockwise": KernelRule(
        "bitsandbytes 0.50 backends/cuda/ops.py: scales first", _contiguous_first(0), order=(1, 0)
    ),
    "bitsandbytes::int8_scaled_mm": KernelRule(
        "bitsandbytes 0.50 backends/default/ops.py, backends/cuda/ops.py", int8_scaled_mm
    ),
    "bitsandbytes::int8_mixed_scaled_mm": KernelRule(
        "bitsandbytes 0.50 backends/default/ops.py, no outlier columns", int8_scaled_mm
    ),
    "bitsandbytes::int8_vectorwise_quant": KernelRule(
        "bitsandbytes 0.50 backends/cuda/ops.py", int8_vectorwise_quant, order=(1, 0, 2)
    ),
    "bitsandbytes::optimizer_update_8bit_blockwise": _BNB_UPDATE,
    "bitsandbytes::optimizer_update_32bit": _BNB_UPDATE,
}
