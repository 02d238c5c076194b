"""What PEFT targets by itself where a configuration names no modules, by model type: peft 0.21
utils/constants.py TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING. A test compares it with the installed
peft.
"""

from __future__ import annotations

from memplan.planner.tables.errors import UsageError, shorten

ALL_LINEAR = "all-linear"
LINEAR_MODULES = "linear-modules"
"""As axolotl's lora_target_linear: the last names of all linear layers but the output projection, by which PEFT
then finds them (axolotl 0.19 loaders/adapter.py find_all_linear_names). PEFT's own all-linear also names experts
that are no linear layers any more.
"""

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

ADALORA_TARGETS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "gptj", "gpt_neo"), _QV),
    **dict.fromkeys(("bloom", "gpt_neox"), _FUSED),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ("c_attn",)),
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "nemotron_h": ("q_proj", "k_proj", "v_proj", "o_proj"),
}
"""What AdaLoRA targets by itself: a table of its own (peft 0.21 utils/constants.py
TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING), which lacks Mistral, Mixtral, Falcon, Phi and StableLM.
"""

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


OWN: dict[str | None, tuple[str, dict[str, tuple[str, ...]]]] = {
    "ADALORA": ("AdaLoRA ", ADALORA_TARGETS),
    "IA3": ("IA3 ", IA3_TARGETS),
}


def peft_targets(model_type: str, peft_type: str | None = "LORA") -> tuple[str, ...]:
    """PEFT's own targets for one model type and PEFT type. UsageError where PEFT has none, as PEFT itself
    fails there.
    """
    kind, table = OWN.get(peft_type, ("", PEFT_TARGETS))
    if model_type not in table:
        raise UsageError(
            f"PEFT has no {kind}targets of its own for model_type '{shorten(model_type)}': name them, as in "
            "--targets all-linear"
        )
    return table[model_type]


def ia3_feedforward(model_type: str) -> tuple[str, ...]:
    """Ends of the names of linear layers whose input IA3 scales, where its configuration names none: PEFT's
    for the model type (TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING), else all such names.
    """
    own = IA3_TARGETS.get(model_type)
    if own is None:
        return IA3_FEEDFORWARD
    return tuple(name for name in own if name.rpartition(".")[2] in IA3_FEEDFORWARD)
