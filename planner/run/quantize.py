"""bitsandbytes' 4-bit and 8-bit linear layers in place of plain ones, and their weights quantized as each is
made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from memplan.planner.inputs.setup import Setup
from memplan.planner.run.extras import BITSANDBYTES, require
from memplan.planner.tables.mixer_kernels import UNQUANTIZED
from memplan.planner.tables.upcasts import is_expert


def replace_linears(model: nn.Module, setup: Setup) -> list[str]:
    """Swap the linear layers that transformers would quantize for bitsandbytes' own, still on meta; returns
    their names.

    Which: every nn.Linear and Conv1D but tied ones, the output embedding, the last parameter's module and
    what the class keeps in fp32 (transformers 5.23 quantizers/base.py get_keys_to_not_convert;
    integrations/bitsandbytes.py replace_with_bnb_linear).
    """
    if setup.quant_type == "none":
        return []
    require(*BITSANDBYTES)
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    of_stack = UNQUANTIZED.get((setup.recipe, str(model.config.model_type)), ())  # type: ignore[union-attr]
    skipped = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ()), *of_stack]
    names = []
    for name, module in list(model.named_modules()):
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, skipped):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _placeholder(module, setup))
            names.append(name)
    model.is_quantized = True  # type: ignore[assignment]
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            # 5.23 quantizers/base.py _assign_is_quantized: flash attention casts to the config's dtype
            module.config._is_quantized = True
    setattr(model, "is_loaded_in_8bit" if setup.quant_type == "int8" else "is_loaded_in_4bit", True)
    model.quantization_method = "bitsandbytes"  # type: ignore[assignment]
    return names


def _placeholder(module: nn.Module, setup: Setup) -> nn.Module:
    import bitsandbytes as bnb

    rows, columns = module.weight.shape  # type: ignore[misc]
    fan_out, fan_in = (rows, columns) if isinstance(module, nn.Linear) else (columns, rows)
    bias = module.bias is not None
    if setup.quant_type == "int8":
        made = bnb.nn.Linear8bitLt(
            fan_in, fan_out, bias=bias, has_fp16_weights=False, threshold=6.0, device="meta"
        )
    else:
        made = bnb.nn.Linear4bit(
            fan_in,
            fan_out,
            bias=bias,
            device="meta",
            compute_dtype=getattr(torch, setup.compute_dtype),
            compress_statistics=setup.double_quant,
            quant_type=setup.quant_type,
            quant_storage=getattr(torch, setup.quant_storage),
        )
    made.weight.memplan_dtype = module.weight.dtype
    if bias:
        made.bias = nn.Parameter(
            torch.empty(fan_out, dtype=module.weight.dtype, device="meta"), requires_grad=False
        )
    made.requires_grad_(False)
    return made


def quantize(module: Any, setup: Setup, weight: torch.Tensor, *, pretrained: bool = False) -> None:
    """Give a placeholder its weight: `weight`, on the device, quantized there by bitsandbytes; the caller
    drops the original.

    `pretrained`: 8-bit weights then make a detour over the host, so that two of them are on the device at a
    time (transformers 5.23 integrations/bitsandbytes.py Bnb8bitQuantize).
    """
    import bitsandbytes as bnb

    if setup.quant_type == "int8":
        source = torch.empty_like(weight).copy_(weight) if pretrained else weight
        module.weight = bnb.nn.Int8Params(source, requires_grad=False, has_fp16_weights=False)._quantize(
            weight.device
        )
        return
    made = bnb.nn.Params4bit(
        weight,
        requires_grad=False,
        blocksize=setup.quant_block,
        compress_statistics=setup.double_quant,
        quant_type=setup.quant_type,
        quant_storage=getattr(torch, setup.quant_storage),
        module=module,
    )
    module.weight = made._quantize(weight.device)


def quantizes_expert(name: str, parameter: Any, setup: Setup) -> bool:
    """Whether this is a parameter of experts that is quantized beside linear layers."""
    return (
        setup.quantize_experts
        and isinstance(parameter, nn.Parameter)
        and is_expert(name, parameter.dim())
        and not hasattr(parameter, "quant_state")
    )


def quantize_expert(module: nn.Module, key: str, setup: Setup, weight: torch.Tensor) -> None:
    """Put `weight`, on the device, in 4 bits in place of a parameter of all experts: bitsandbytes' own
    parametrization, which dequantizes the whole of it when the experts' forward reads it and keeps it until
    that forward ends. As axolotl calls it (0.18 monkeypatch/moe_quant.py), with the setup's type and blocks.
    """
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    module._parameters[key] = nn.Parameter(weight, requires_grad=False)
    replace_parameter_4bit(
        module,
        key,
        compress_statistics=setup.double_quant,
        quant_type=setup.quant_type,  # type: ignore[arg-type]
        blocksize=setup.quant_block,
    )
    made: Any = module.parametrizations[key]  # type: ignore[index]
    made.original.quant_state = made[0].quant_state
