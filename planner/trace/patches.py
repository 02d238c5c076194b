"""What a library needs in order to run on meta tensors: one entry each, with the library's file and version.
Undone on exit.

A patch changes where a library refuses meta or asks a tensor for its value; never what it allocates on a real
device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from memplan.planner.inputs.pictures import read_sizes
from memplan.planner.inputs.setup import Setup
from memplan.planner.run.extras import BITSANDBYTES, load, require
from memplan.planner.run.values import Values
from memplan.planner.tables.components import GENERATION
from memplan.planner.tables.optimizers import OPTIMIZERS
from memplan.planner.trace import chunked_sums, grouped, patches_optimizers, patches_peft
from memplan.planner.trace.autocast import lower_dtype
from memplan.planner.trace.device import flash2
from memplan.planner.trace.device.kernels_bitsandbytes import fused
from memplan.planner.trace.device.kernels_cpu import layer_norm
from memplan.planner.trace.device.rule import OpCall
from memplan.planner.trace.device.target import target_of
from memplan.planner.trace.observe import Observer

_ATEN = torch.ops.aten


class _Values:
    """What a program reads off tensors that have no values: see `answers`."""

    def __init__(self, setup: Setup, observer: Observer, routed: bool) -> None:
        self.observer, self.routed = observer, routed
        self.every_token_real = not (setup.padded or setup.packed_documents > 1)

    def refuse_unknown(self, tensor: torch.Tensor) -> None:
        """With a router, an integer read in the step decides shapes: better no answer than a wrong one."""
        in_step = self.observer.moment in (GENERATION, "forward", "backward")
        if self.routed and in_step and not tensor.is_floating_point():
            raise RuntimeError("its shapes depend on the values of tensors")

    def scalar(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensor = args[0]
        if not tensor.is_meta:
            return func(*args, **kwargs)
        if tensor.dtype == torch.bool:
            made = self.observer.storage_of(tensor)
            searched = made is not None and made.op.startswith("aten.any")
            # transformers 5.24 generation/utils.py StopCheck, in no module: are all rows finished?
            stops = made is not None and made.op.startswith("aten.eq") and not made.module
            if stops and self.observer.moment == GENERATION:
                return True
            return not searched and self.every_token_real  # peft 0.21 tuners/vblora/layer.py: any infinite?
        self.refuse_unknown(tensor)
        return 0.0 if tensor.is_floating_point() else 0

    def to_copy(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        device = kwargs.get("device")
        if not args[0].is_meta or device is None or torch.device(device).type != "cpu":
            return NotImplemented
        self.refuse_unknown(args[0])
        return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)

    def offloaded(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """torch 2.13 autograd/graph.py save_on_cpu makes a copy in pinned memory; one element on the host
        stands for it.
        """
        shape, host = args[0], torch.device(kwargs.get("device") or "cpu").type == "cpu"
        if self.observer.moment != "forward" or not host or not shape or not math.prod(shape):
            return NotImplemented  # torch 2.11 makes a single number of its own there
        made = torch.empty(1, dtype=kwargs.get("dtype"))
        return self.observer.keep_on_host(made, math.prod(shape) * made.element_size()).expand(shape)


def _copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A device tensor's values arrive in a host tensor that is there already."""
    return args[0] if args[1].is_meta and not args[0].is_meta else NotImplemented


def answers(setup: Setup, observer: Observer, routed: bool = False) -> dict[Any, Callable[..., Any]]:
    """Ops that ask a tensor for its value: `mask.all()` is True for one full document to a row, `any()` of a
    search for faults False; numbers are 0. `routed`: counts are those of balanced experts, and one that is
    not known ends the run.

    What a program copies to the host arrives as zeros (peft 0.21 tuners/adalora/layer.py mask_to_budget calls
    `tolist`). transformers 5.23 masking_utils.py _ignore_causal_mask_sdpa asks `padding_mask.all()`;
    optimizers and schedules ask scalars.
    """
    values, adapter = _Values(setup, observer, routed), patches_peft.type_of(setup)
    found = {
        **(_int8() if setup.quant_type == "int8" else {}),
        _ATEN._local_scalar_dense.default: values.scalar,
        _ATEN._to_copy.default: values.to_copy,
        _ATEN.copy_.default: _copy,
        _ATEN._grouped_mm.default: grouped.grouped_mm,
        _ATEN._scaled_dot_product_efficient_attention_backward.default: grouped.grouped_heads,
        _ATEN.nonzero.default: flash2.nonzero,
        **(_gemm_4bit(setup) if setup.quant_type in ("nf4", "fp4") else {}),
        **_REFUSALS,
        **({_ATEN.empty.memory_format: values.offloaded} if setup.checkpoint_offload else {}),
        **({_ATEN.native_layer_norm.default: layer_norm} if setup.device == "cpu" else {}),
        **(patches_peft.sparse() if adapter.sparse else {}),
    }
    with_pictures = bool(read_sizes(setup.images))
    known = adapter.values or routed or with_pictures
    return Values(found, routed, with_pictures) if known else found


def _gemm_4bit(setup: Setup) -> dict[Any, Callable[..., Any]]:
    """bitsandbytes 0.50 backends/cuda/ops.py _dequant_linear_fallback calls F.linear, which autocast, still
    on inside the op, casts: the result has autocast's dtype, which the library's own meta kernel does not
    say.
    """
    load("bitsandbytes")
    target = target_of(setup)

    def answer(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs, dtype = args[0], lower_dtype()
        if dtype in (None, inputs.dtype) or target.device != "cuda" or fused(OpCall(target, args, ())):
            return NotImplemented
        return torch.empty((*inputs.shape[:-1], args[2][0]), dtype=dtype, device="meta")

    return {torch.ops.bitsandbytes.gemm_4bit.default: answer}


def _fits(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A real device's masked_fill refuses a number beyond its dtype (torch 2.13 c10/core/Scalar.h); meta's
    does not look.
    """
    tensor, value = args[0], args[2]
    if tensor.is_floating_point() and math.isfinite(value) and abs(value) > torch.finfo(tensor.dtype).max:
        raise RuntimeError(f"value {value:.4g} cannot be converted to type {tensor.dtype} without overflow")
    return NotImplemented


def _same(*positions: int) -> Callable[..., Any]:
    """A real device's product or indexed write refuses tensors of different dtypes; meta's does not look."""

    def check(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        dtypes = [str(args[position].dtype).removeprefix("torch.") for position in positions]
        if len(set(dtypes)) > 1:
            raise RuntimeError(
                f"{func._schema.name} expects tensors of the same dtype, but got {' and '.join(dtypes)}"
            )
        return NotImplemented

    return check


# torch 2.13 native/LinearAlgebra.cpp, Convolution.cpp, TensorAdvancedIndexing.cpp: what real kernels check,
# and meta's Python ones do not.
_REFUSALS: dict[Any, Callable[..., Any]] = {
    _ATEN.mm.default: _same(0, 1),
    _ATEN.bmm.default: _same(0, 1),
    _ATEN.mv.default: _same(0, 1),
    _ATEN.addmm.default: _same(0, 1, 2),
    _ATEN.baddbmm.default: _same(0, 1, 2),
    _ATEN.convolution.default: _same(0, 1),
    _ATEN.index_put.default: _same(0, 2),
    _ATEN.index_put_.default: _same(0, 2),
    _ATEN.index_add.default: _same(0, 3),
    _ATEN.index_copy.default: _same(0, 3),
    _ATEN.masked_fill.Scalar: _fits,
    _ATEN.masked_fill_.Scalar: _fits,
}


def _int8() -> dict[Any, Callable[..., Any]]:
    """bitsandbytes 0.50 _ops.py int8_vectorwise_quant, int8_mixed_scaled_mm: how many columns hold outliers
    depends on values; random ones have none.
    """
    require(*BITSANDBYTES)  # and so imported: it defines the ops

    def quantized(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        source = args[0]
        if not source.is_meta or not (args[1] if len(args) > 1 else kwargs.get("threshold", 0.0)):
            return NotImplemented
        rows = (
            torch.empty(source.shape, dtype=torch.int8, device="meta"),
            torch.empty(source.shape[:-1].numel(), device="meta"),
        )
        return (*rows, torch.empty(0, dtype=torch.int64, device="meta"))

    def product(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        source, rows, weight = args[:3]
        if not source.is_meta:
            return NotImplemented
        return torch.empty((*rows.shape[:-1], weight.shape[0]), dtype=source.dtype, device="meta"), None

    ops = torch.ops.bitsandbytes
    return {ops.int8_vectorwise_quant.default: quantized, ops.int8_mixed_scaled_mm.default: product}


@contextmanager
def applied(observer: Observer, setup: Setup) -> Iterator[None]:
    """Every patch for the time of one trace."""
    with ExitStack() as stack:
        for patch in PATCHES:
            stack.enter_context(patch(observer, setup))
        yield


@contextmanager
def _torch_optimizers(observer: Observer, setup: Setup) -> Iterator[None]:
    """torch 2.13 optim/optimizer.py and utils/_foreach_utils.py: fused and foreach paths are chosen by a list
    of device types; add meta.
    """
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    fused, foreach = (
        _foreach_utils._get_fused_kernels_supported_devices,
        _foreach_utils._get_foreach_kernels_supported_devices,
    )
    with ExitStack() as stack:
        for module in (optimizer, _foreach_utils):
            stack.enter_context(
                patch.object(module, "_get_fused_kernels_supported_devices", lambda: [*fused(), "meta"])
            )
            stack.enter_context(
                patch.object(module, "_get_foreach_kernels_supported_devices", lambda: [*foreach(), "meta"])
            )
        yield


@contextmanager
def _bitsandbytes_paged(observer: Observer, setup: Setup) -> Iterator[None]:
    """bitsandbytes 0.50 functional.py get_paged: managed memory, invisible to the allocator; here a tensor on
    the host's ledger.
    """
    if setup.quant_type == "none" and OPTIMIZERS[setup.optimizer].library != "bitsandbytes":
        yield
        return
    require(*BITSANDBYTES)
    import bitsandbytes.functional as F

    def get_paged(*shape: int, dtype: torch.dtype = torch.float32, device: Any = None) -> torch.Tensor:
        with observer.on_host():
            made = torch.empty(shape, dtype=dtype, device="meta")
        made.is_paged, made.page_deviceid = True, 0  # type: ignore[attr-defined]
        return observer.keep_on_host(made, made.numel() * made.element_size())

    maps = dict(F.name2qmap)
    F.name2qmap.clear()
    try:
        with ExitStack() as stack:
            for name, stand_in in (
                ("get_paged", get_paged),
                ("prefetch_tensor", patches_optimizers.nothing),
                ("fill", patches_optimizers.nothing),
            ):
                stack.enter_context(patch.object(F, name, stand_in))
            yield
    finally:
        F.GlobalPageManager.get_instance().paged_tensors.clear()
        F.name2qmap.clear()
        F.name2qmap.update(maps)


@contextmanager
def _tensors_from_data(observer: Observer, setup: Setup) -> Iterator[None]:
    """torch 2.13 torch/csrc/utils/tensor_new.cpp: torch.tensor(data, device=...) works beneath every dispatch
    mode; here it is seen.

    bitsandbytes 0.50 functional.py get_4bit_type makes the code table of every quantized weight so.
    """
    original = torch.tensor

    def tensor(*args: Any, **kwargs: Any) -> torch.Tensor:
        made = original(*args, **kwargs)
        if kwargs.get("device") is None or not made.is_meta:
            return made
        made = made if observer._host else observer.to_device(made)
        if isinstance(observer.answers, Values):
            observer.answers.keep_data(made, *args)
        return made

    with patch.object(torch, "tensor", tensor):
        yield


PATCHES = (
    patches_peft.requantized,
    _tensors_from_data,
    _torch_optimizers,
    patches_peft.moves_adapters,
    patches_peft.counts_masks,
    patches_peft.whole_updates,
    patches_peft.decomposes,
    patches_peft.copies_weights,
    _bitsandbytes_paged,
    patches_optimizers.torchao_compiled,
    patches_optimizers.optimi_kernels,
    patches_optimizers.states_on_host,
    grouped.by_capability,
    chunked_sums.by_capability,
)
