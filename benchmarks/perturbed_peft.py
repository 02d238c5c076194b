"""PEFT's LoRA and AdaLoRA in transformers' Trainer on a small Llama, on a CPU."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

from perturbed_trainers import prepare, train
from perturbing import Watch

LIBRARY = "peft"
_ADAPTIVE = ("tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step")
VALUES: dict[str, Any] = {
    "alpha_pattern": {"q_proj": 8},
    "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"},
    "corda_config": {"cache_file": "x"},
    "eva_config": {"rho": 3.0},
    "init_lora_weights": False,
    "lora_ga_config": {"direction": "ArBr"},
    "runtime_config": {"ephemeral_gpu_offload": True},
    "layers_pattern": "layers",
    "peft_version": "0.20.0",
    "task_type": None,
    "tinit": 1,
    "tfinal": 1,
    "total_step": 50,
}
BESIDE: dict[str, dict[str, Any]] = {
    **{name: {"peft_type": "ADALORA"} for name in _ADAPTIVE},
    "layers_pattern": {"layers_to_transform": [0, 1], "target_modules": ["q_proj", "v_proj"]},
}
_CLASSES = {
    "corda_config": "CordaConfig",
    "eva_config": "EvaConfig",
    "lora_ga_config": "LoraGAConfig",
    "runtime_config": "LoraRuntimeConfig",
}
READ = {
    "inference_mode": "peft 0.21 config.py: in files of saved adapters; PeftModel.from_pretrained sets it"
}
"""Keys that no run shows, and what was read."""

__all__ = ["prepare"]


def keys() -> dict[str, Any]:
    """Every field of both configurations: annotation and default."""
    import peft

    found = {}
    for cls in (peft.AdaLoraConfig, peft.LoraConfig):
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            found[field.name] = (hints[field.name], default)
    return found


def config(changes: dict[str, Any]) -> Any:
    """The adapter's configuration with some fields changed."""
    import peft

    adaptive = changes.get("peft_type") == "ADALORA"
    common = {"total_step": 20, "init_r": 4} if adaptive else {"r": 4}
    module = peft.tuners.lora.config
    given = {key: value for key, value in changes.items() if key != "peft_type"}
    given |= {key: getattr(module, name)(**given[key]) for key, name in _CLASSES.items() if key in given}
    cls = peft.AdaLoraConfig if adaptive else peft.LoraConfig
    return cls(**{"target_modules": "all-linear", "task_type": "CAUSAL_LM", **common, **given})


def check(folder: Path, changes: dict[str, Any]) -> None:
    """The configuration, without a run. Raises what it raises."""
    config(changes)


def run(watch: Watch, folder: Path, changes: dict[str, Any]) -> None:
    """Two steps with some fields changed."""
    import peft

    train(watch, folder, {}, lambda model: peft.get_peft_model(model, config(changes)))
