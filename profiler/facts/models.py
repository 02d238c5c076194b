"""The tiny models and layers that facts are read from, on the CPU: a Llama, the same with adapters, the same
in 4 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memplan.profiler.localized_message import LocalizedMessage

Value = int | float | bool | str
Finding = tuple[Value, LocalizedMessage]
Probe = Callable[[], Finding]
"""Reads one fact: (its value, where it was seen)."""
BLOCK = 64


def tiny_llama(**changes: Any) -> Any:
    """A Llama of two layers on the CPU, fp32, with everything a real one has."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=128,
    )
    for key, value in changes.items():
        setattr(config, key, value)
    return LlamaForCausalLM(config)


def with_adapter(model: Any = None, **settings: Any) -> Any:
    """`model` (default: a tiny Llama) with LoRA of rank 8 on queries and values, unless `settings` say
    otherwise.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    settings = {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        **settings,
    }
    return get_peft_model(tiny_llama() if model is None else model, LoraConfig(**settings))


def quantized(double: bool = True, kind: str = "nf4", rows: int = 64, columns: int = 64) -> Any:
    """A bitsandbytes Linear4bit on the CPU with real 4-bit weights."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    torch.manual_seed(0)
    layer = Linear4bit(
        columns, rows, bias=False, compute_dtype=torch.float32, compress_statistics=double, quant_type=kind
    )
    layer.weight = Params4bit(
        torch.randn(rows, columns),
        requires_grad=False,
        compress_statistics=double,
        quant_type=kind,
        blocksize=BLOCK,
    )
    return layer.to("cpu")


def quantized_llama() -> Any:
    """A tiny bf16 Llama whose linear layers, the head apart, are 4-bit: what loading with BitsAndBytesConfig
    gives.
    """
    import torch

    model = tiny_llama().to(torch.bfloat16)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(
                parent,
                name.rpartition(".")[2],
                quantized(rows=module.out_features, columns=module.in_features),
            )
    model.is_loaded_in_4bit = True
    return model
