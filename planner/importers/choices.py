"""Optimizers and attention backends by the names that training files use: ours where there is a row, else the
nearest, said aloud.
"""

from __future__ import annotations

from typing import Any

from memplan.planner.importers.low_rank import settle_low_rank
from memplan.planner.importers.rules import SIDE, UNMODELED, Facts, Imported, bad, text
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.errors import unknown
from memplan.planner.tables.optimizers import OPTIMIZERS
from memplan.planner.tables.other_optimizers import WITHOUT_A_RULE
from memplan.planner.tables.sdp import FLASH_2

_OTHERS = """
ao_adamw_4bit ao_adamw_8bit ao_adamw_fp8 adopt_adamw adamc came_pytorch muon_8bit dion sinkgd polora flash_adamw
flash_adam flash_sgd flash_sgdw flash_lion scao q_galore_adamw8bit adam_mini badam
"""
OTHER_OPTIMIZERS = frozenset((*WITHOUT_A_RULE, *_OTHERS.split()))
"""Legal in transformers 5.23 (OptimizerNames), axolotl 0.21 (CustomSupportedOptimizers) or LLaMA-Factory
0.9.5; no row of ours.
"""

SMALLER = (
    "4bit",
    "8bit",
    "fp8",
    "galore",
    "muon",
    "adam_mini",
    "badam",
    "came",
    "rmsprop",
    "lion",
    "sgd",
)
"""Parts of names: states smaller than AdamW's two (quantized, projected, factored or a single one)."""

_ALIASES = {"adamw_hf": "adamw_torch", "adamw": "adamw_torch", "adamw_apex_fused": "adamw_torch_fused"}


def optimizer(key: str, value: Any) -> str:
    """An optimizer's name; those without a row pass, and `settle_optimizer` says what was assumed instead."""
    name = text(key, value).lower()
    name = _ALIASES.get(name, name)
    if name not in OPTIMIZERS and name not in OTHER_OPTIMIZERS:
        raise unknown(f"{key}: optimizer", name, (*OPTIMIZERS, *OTHER_OPTIMIZERS))
    return name


def settle_optimizer(facts: Facts, warnings: list[str]) -> None:
    """Replace an optimizer without a row by the one assumed, and say so; `Imported.not_modelled` makes the
    answer a lower bound where the states may be larger.
    """
    name = facts.get("optimizer")
    if name is not None and name not in OPTIMIZERS:
        side = "high" if any(word in name for word in SMALLER) else ""
        warnings.append(f"{UNMODELED.format(name)}: assuming the states of adamw_torch_fused{SIDE[side]}")
        facts["optimizer"] = "adamw_torch_fused"
    _settle_arguments(facts, warnings)


NUMBERS = frozenset(
    [
        "lr",
        "betas",
        "beta1",
        "beta2",
        "beta3",
        "alpha",
        "eps",
        "weight_decay",
        "lamb",
        "decay_rate",
        "clip_threshold",
        "scale_parameter",
        "relative_step",
        "warmup_init",
        "warmup_steps",
        "r",
        "weight_lr_power",
        "nesterov",
        "t_alpha_beta3",
    ]
)


def _settle_arguments(facts: Facts, warnings: list[str]) -> None:
    """What an optimizer's arguments say beside the numbers that it computes with."""
    why = settle_low_rank(facts)
    harmless = NUMBERS | (ROUNDING if _trains_float32(facts) else frozenset())
    if not why and not set(facts.get("_optim_args") or {}) <= harmless:
        why = "arguments by which an optimizer's states may be others"
    if why:
        facts["_lacks"] = {**facts.get("_lacks", {}), "optim_args": why}
        warnings.append(f"optim_args is not modeled: {why}")


ROUNDING = frozenset(["bf16_stochastic_round"])
"""Numbers of parameters in bfloat16 alone (torchao 0.18 optim/adam.py step)."""


def _trains_float32(facts: Facts) -> bool:
    """Whether what is trained are adapters in float32, on one GPU."""
    sharded = any(key in facts for key in ("_fsdp", "_fsdp_config", "_strategy", "_shards", "_deepspeed"))
    adapters = facts.get("_adapter", "none") != "none"
    return adapters and not sharded and facts.get("adapter_dtype", "float32") == "float32"


ATTENTION = {"eager": "eager", "sdpa": "sdpa", "flash_attention_2": "flash_attention_2"}
_FLASH = (
    "flash_attention_3",
    "flash_attention_4",
    "flash_attention_torch",
    "sage",
    "varlen",
    "kernels-community/flash-attn2",
    "kernels-community/flash-attn3",
    "kernels-community/vllm-flash-attn3",
)
_NEAREST = {
    **dict.fromkeys(_FLASH, "flash_attention_2"),
    "xformers": "sdpa-efficient",
    "flex_attention": "sdpa",
    "fp8": "sdpa",
}


def settle_attention(facts: Facts, warnings: list[str]) -> None:
    """Replace a backend that has no model of its own by the nearest one, and say so."""
    name = facts.get("attention")
    if name is not None and not isinstance(name, str):
        raise bad("attn_implementation", name, "a name")
    if name is None or name in ATTENTION:
        return
    base = name.split("@")[0].split(":")[0].lower()
    if base not in _NEAREST and base not in ATTENTION:
        raise unknown("attention implementation", name, (*ATTENTION, *_NEAREST))
    facts["attention"] = ATTENTION.get(base) or _NEAREST[base]
    if base in _NEAREST:
        facts["_named_attention"] = base
        warnings.append(f"{_said(base)}: {facts['attention']}, the nearest, is assumed")


def runs_instead(imported: Imported, setup: Setup, spec: ModelSpec) -> Setup:
    """`setup` with an attention that the model's class runs, where the file's own kernel was replaced by
    flash_attention_2 and that takes neither sinks nor ALiBi (gpt-oss, Falcon-RW): eager, which holds the
    scores that a fused kernel does not. The warning is added to `imported`.
    """
    attentions = [layer.attention for _, layer in spec.layers]
    has = "sinks" if any(a.sinks for a in attentions) else "ALiBi" if any(a.alibi for a in attentions) else ""
    if not (has and imported.named_attention and setup.attention == FLASH_2):
        return setup
    imported.warnings[:] = [w for w in imported.warnings if not w.startswith(_said(imported.named_attention))]
    imported.warnings.append(
        f"{_said(imported.named_attention)}: eager is assumed, since transformers has no flash_attention_2 "
        f"with {has}; a fused kernel holds no scores of sequence x sequence{SIDE['high']}"
    )
    return setup.replaced(attention="eager")


def without_flash(imported: Imported, setup: Setup, why: str) -> Setup:
    """`setup` with sdpa for a model that flash attention does not run, as `imported` says then."""
    imported.warnings.append(f"flash_attention_2 does not run this model ({why}): sdpa is assumed")
    return setup.replaced(attention="sdpa")


def _said(kernel: str) -> str:
    return f"attention {kernel} is not modeled"
