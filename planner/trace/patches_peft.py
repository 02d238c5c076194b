"""What peft needs in order to run on meta tensors: entries of planner/trace/patches.py, each with the
library's file and version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from memplan.planner.inputs.setup import Setup
from memplan.planner.run.extras import BITSANDBYTES, load, require
from memplan.planner.tables.components import MERGE
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.peft_types import ORDINARY, PEFT_TYPES, PeftType
from memplan.planner.tables.recipes import RECIPES
from memplan.planner.trace.device import flash2
from memplan.planner.trace.observe import Observer

_ATEN = torch.ops.aten


def type_of(setup: Setup) -> PeftType:
    """The row of a setup's adapter_config.json; ORDINARY without one."""
    return PEFT_TYPES.get(str((setup.adapter or {}).get("peft_type", "")).upper(), ORDINARY)


def refuse(setup: Setup) -> None:
    """UsageError for an X-LoRA without its LoRA checkpoints: peft would look for them on the hub, or train
    nothing.
    """
    if type_of(setup).name != "XLORA":
        return
    folders = (setup.adapter or {}).get("adapters") or {}
    missing = [str(folder) for folder in folders.values() if not Path(str(folder)).is_dir()]
    if missing or not folders:
        named = f"no folder {', '.join(missing)}" if missing else "'adapters' names none"
        raise UsageError(
            f"XLORA mixes trained LoRA checkpoints, and {named}: give their local folders under 'adapters'"
        )


def sparse() -> dict[Any, Callable[..., Any]]:
    """Ops that have no kernel for sparse meta tensors. What their CUDA kernels allocate inside is not
    known.
    """

    def added(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (
            args[0]
            if args[0].is_meta and isinstance(args[1], torch.Tensor) and args[1].is_sparse
            else NotImplemented
        )

    def masked(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        dense, mask = args
        values = torch.empty(mask._values().shape, dtype=dense.dtype, device="meta")
        return torch.sparse_coo_tensor(mask._indices(), values, mask.shape, check_invariants=False)

    def coalesced(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        made = (args[0]._indices().clone(), args[0]._values().clone(), args[0].shape)
        return torch.sparse_coo_tensor(*made, check_invariants=False)._coalesced_(True)

    def dense(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return torch.empty(args[0].shape, dtype=args[0].dtype, device="meta")

    def places(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not args[0].is_meta or not _SET:
            return flash2.nonzero(func, args, kwargs)
        return torch.empty((_SET[-1], args[0].dim()), dtype=torch.int64, device="meta")

    return {
        _ATEN.nonzero.default: places,
        _ATEN.add_.Tensor: added,
        _ATEN.sparse_mask.default: masked,
        _ATEN._coalesce.default: coalesced,
        _ATEN._to_dense.default: dense,
    }


_SET: list[int] = []  # how many places the mask of the SHiRA layer in the making sets


@contextmanager
def counts_masks(observer: Observer, setup: Setup) -> Iterator[None]:
    """peft 0.21 tuners/shira/layer.py update_layer asks where its mask is set: it sets r (in + out) places,
    and refuses a layer that has fewer.
    """
    if type_of(setup).name != "SHIRA":
        yield
        return
    load("peft")
    from peft.tuners.shira.layer import ShiraLayer

    original = ShiraLayer.update_layer

    def counted(self: Any, adapter_name: str, mask: Any, r: int, *args: Any, **kwargs: Any) -> None:
        _SET.append(r * (self.in_features + self.out_features))
        try:
            original(self, adapter_name, mask, r, *args, **kwargs)
        finally:
            _SET.pop()

    with patch.object(ShiraLayer, "update_layer", counted):
        yield


@contextmanager
def whole_updates(observer: Observer, setup: Setup) -> Iterator[None]:
    """peft 0.20 tuners/lora/layer.py ParamWrapper._activate_lora: the product of both factors, as large as
    the parameter, is added to it, where 0.21 adds while it multiplies.
    """
    if not setup.target_parameters or not RECIPES[setup.recipe].whole_updates:
        yield
        return
    load("peft")
    from peft.tuners.lora import layer

    def factors(self: Any, adapter_name: str) -> tuple[torch.Tensor]:
        return (self.get_delta_weight(adapter_name),)

    if not hasattr(layer, "_LoraFactorsProxy"):  # an older peft is installed
        yield
        return
    with (
        patch.object(layer.ParamWrapper, "get_delta_factors", factors),
        patch.object(layer, "_LoraFactorsProxy", layer._LoraParameterProxy),
    ):
        yield


@contextmanager
def moves_adapters(observer: Observer, setup: Setup) -> Iterator[None]:
    """peft 0.21 tuners/tuners_utils.py _move_adapter_to_device_of_base_layer: skips meta; move as for a real
    device, casting like it does.
    """
    if setup.adapter is None and METHODS[setup.method].peft_type is None:
        yield
        return
    load("peft")
    from peft.tuners.tuners_utils import BaseTunerLayer

    original = BaseTunerLayer._move_adapter_to_device_of_base_layer

    def moved(self: Any, adapter_name: str, device: Any = None) -> None:
        before = [
            (holder, item.requires_grad, item.dtype)
            for holder, item in _tensors_of(self, adapter_name)
            if isinstance(holder, nn.ParameterDict)
        ]
        original(self, adapter_name, device)
        if setup.device == "cpu":  # nothing is moved there: AdaLoRA's ranknum stays frozen
            for holder, trained, dtype in before:
                if holder[adapter_name].dtype == dtype:
                    holder[adapter_name].requires_grad_(trained)
        base = self.get_base_layer()
        found = (observer.storage_of(parameter) for parameter in base.parameters())
        owner = next((storage for storage in found if storage is not None), None)
        where = (
            nullcontext() if owner is None else observer.scope(owner.module.rpartition(".")[0], owner.layer)
        )
        with where:
            for holder, item in list(_tensors_of(self, adapter_name)):
                _to_device_of(observer, holder, adapter_name, item, _floating_dtype(base))

    with patch.object(BaseTunerLayer, "_move_adapter_to_device_of_base_layer", moved):
        yield


def _tensors_of(layer: Any, adapter_name: str) -> Iterator[tuple[Any, Any]]:
    """(dictionary, entry) of each of a tuner layer's parameters, buffers and modules of one adapter."""
    for name in (*layer.adapter_layer_names, *layer.other_param_names):
        holder: Any = getattr(layer, name, None)
        if hasattr(holder, "keys") and adapter_name in holder:
            yield holder, holder[adapter_name]


def _floating_dtype(base: Any) -> torch.dtype | None:
    """The dtype of a base layer's weight, which its adapters are cast to; None for a packed one."""
    weight = getattr(base, "weight", None)
    weight = weight if isinstance(weight, torch.Tensor) else next(iter(base.parameters()), None)
    return weight.dtype if weight is not None and weight.is_floating_point() else None


def _to_device_of(
    observer: Observer, holder: Any, adapter_name: str, item: Any, dtype: torch.dtype | None
) -> None:
    """One entry of an adapter, cast like peft does and moved as to a real device."""
    if isinstance(item, nn.Module):
        if dtype is not None:
            item.to(dtype=dtype)
        for module in item.modules():
            for store in (module._parameters, module._buffers):
                store.update({key: observer.to_device(t) for key, t in store.items() if t is not None})
    elif isinstance(item, torch.Tensor):
        if dtype is not None and item.is_floating_point() and item.dtype != dtype:
            cast = item.data.to(dtype)
            parameter = isinstance(item, nn.Parameter)
            item = nn.Parameter(cast, requires_grad=item.requires_grad) if parameter else cast
        holder[adapter_name] = observer.to_device(item)


@contextmanager
def copies_weights(observer: Observer, setup: Setup) -> Iterator[None]:
    """bitsandbytes 0.50 nn/modules.py Params4bit.__deepcopy__ makes an empty tensor on the host and gives it
    the copy's bytes, which meta refuses. peft 0.21 tuners/lora/dora.py update_layer copies every 4-bit layer
    so.
    """
    if setup.quant_type not in ("nf4", "fp4"):
        yield
        return
    load("bitsandbytes")
    from bitsandbytes.nn import Params4bit

    def copied(self: Any, memo: dict[int, Any]) -> Any:
        made = torch.Tensor._make_subclass(
            type(self), self.detach().as_subclass(torch.Tensor).clone(), self.requires_grad
        )
        made.__dict__.update({key: value for key, value in self.__dict__.items() if key != "quant_state"})
        made.quant_state = deepcopy(self.quant_state, memo)  # type: ignore[attr-defined]
        return made

    with patch.object(Params4bit, "__deepcopy__", copied):
        yield


@contextmanager
def decomposes(observer: Observer, setup: Setup) -> Iterator[None]:
    """Adapters that start from a decomposition of the base weights: on the host it is skipped, what it moves
    there is not.

    peft 0.21 tuners/frod/{model,layer}.py: singular vectors and a solve, in host memory.
    tuners/adamss/utils.py: which rows belong together is found by k-means (scikit-learn); here equal runs of
    rows. Adapters of one rank have the same size however the rows fall.
    """
    kind = type_of(setup).name
    with ExitStack() as stack:
        if kind == "FROD":
            from peft.tuners.frod import layer, model

            def projection(matrices: list[torch.Tensor], regularization_alpha: float) -> torch.Tensor:
                return torch.zeros(matrices[0].shape[1], matrices[0].shape[1])

            def solved(self: Any, V: torch.Tensor, W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                W.detach().to(torch.float64).cpu()
                return torch.zeros(W.shape), torch.zeros(W.shape[1])

            bar = model.tqdm
            stack.enter_context(
                patch.object(
                    model, "tqdm", lambda items, **options: bar(items, **{**options, "disable": True})
                )
            )
            stack.enter_context(patch.object(model, "_projection_from_weights", projection))
            stack.enter_context(patch.object(layer.FrodLayer, "_calculate_frod_u_and_lambda", solved))
        if kind == "ADAMSS":
            from peft.tuners.adamss import layer as adamss

            stack.enter_context(patch.object(adamss, "clustering_Z", even_clusters))
            stack.enter_context(patch.object(torch.random, "fork_rng", lambda *args, **kwargs: nullcontext()))
        yield


def even_clusters(rows: torch.Tensor, count: int, iterations: int) -> tuple[torch.Tensor, int]:
    """Rows in `count` runs of nearly one length: (cluster of each row, how many clusters)."""
    count = min(count, rows.shape[0])
    return torch.arange(rows.shape[0]) * count // rows.shape[0], count


@contextmanager
def requantized(observer: Observer, setup: Setup) -> Iterator[None]:
    """bitsandbytes 0.50 nn/modules.py Params4bit.to quantizes on arrival at every device but meta: here too
    where an adapter is merged into 4-bit weights (peft 0.21 tuners/lora/bnb.py Linear4bit.merge).
    """
    if not setup.merge or setup.quant_type not in ("nf4", "fp4"):
        yield
        return
    require(*BITSANDBYTES)
    from bitsandbytes.nn import Params4bit

    own = Params4bit.to

    def to(weight: Any, *args: Any, **options: Any) -> Any:
        device = torch._C._nn._parse_to(*args, **options)[0]
        if observer.moment != MERGE or device is None or weight.bnb_quantized:
            return own(weight, *args, **options)
        names = ("blocksize", "compress_statistics", "quant_type", "quant_storage", "module")
        kept = {name: getattr(weight, name) for name in names}
        return Params4bit(weight.data.to(device), requires_grad=False, **kept)._quantize(device)

    with patch.object(Params4bit, "to", to):
        yield
