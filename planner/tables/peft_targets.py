"""What PEFT targets by itself where a configuration names no modules, by model type: peft 0.21
utils/constants.py TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING. A test compares it with the installed
peft.
"""

from __future__ import annotations

from memplan.planner.tables.errors import UsageError, shorten

_QV = ("q_proj", "v_proj")
_FUSED = ("query_key_value",)
PEFT_TARGETS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"), _QV),
    **dict.fromkeys(("opt", "gptj", "gpt_neo", "stablelm"), _QV),
    **dict.fromkeys(("bloom", "gpt_neox", "falcon", "chatglm"), _FUSED),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ("c_attn",)),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
    "mpt": ("Wqkv",),
    "codegen": ("qkv_proj",),
    "nemotron_h": ("q_proj", "k_proj", "v_proj", "o_proj"),
}

IA3_TARGETS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "mistral"), ("k_proj", "v_proj", "down_proj")),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"), ("q_proj", "v_proj", "down_proj")),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ("c_attn", "mlp.c_proj")),
    **dict.fromkeys(("bloom", "gpt_neox", "falcon"), ("query_key_value", "dense_4h_to_h")),
    "opt": ("q_proj", "k_proj", "fc2"),
    "gptj": ("q_proj", "v_proj", "fc_out"),
    "phi": ("q_proj", "v_proj", "fc2"),
}
IA3_FEEDFORWARD = ("fc_out", "down_proj", "fc2", "dense_4h_to_h", "c_proj", "w2", "mlp_down")
"""What IA3 targets by itself, by model type, and which of all such names are feed-forward layers (peft 0.21
utils/constants.py TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING).
"""


def peft_targets(model_type: str) -> tuple[str, ...]:
    """PEFT's own targets for one model type. UsageError where PEFT has none, as PEFT itself fails there."""
    if model_type not in PEFT_TARGETS:
        raise UsageError(
            f"PEFT has no targets of its own for model_type '{shorten(model_type)}': name them, as in "
            "--targets all-linear"
        )
    return PEFT_TARGETS[model_type]
