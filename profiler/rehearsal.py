"""A campaign as a rehearsal: every case with a tiny model of the same architecture, on the CPU, so that a
file is known to run before a GPU's time is spent on it. What it shows: each model builds, each setup trains,
each record can be written and read. No sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from memplan.planner.inputs.setup import Setup
from memplan.profiler.case_matrix import Case, CaseList

SEQUENCE, BATCH, STEPS, DEADLINE = 48, 2, 1, 120.0
HEAD = 16
SMALL: Mapping[str, int] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "word_embed_proj_dim", "out_hidden_size", "projection_dim"), 64
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "d_ff",
            "n_inner",
            "ffn_hidden_size",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
        ),
        128,
    ),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "num_layers",
            "num_decoder_layers",
            "encoder_layers",
            "decoder_layers",
            "depth",
        ),
        2,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads", "decoder_attention_heads"),
        4,
    ),
    **dict.fromkeys(("head_dim", "d_kv", "query_pre_attn_scalar", "hidden_size_per_layer_input"), HEAD),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "top_k_experts"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 512),
    **dict.fromkeys(("sliding_window", "attention_window"), 32),
    "vocab_size": 512,
}
"""Sizes of a tiny model by config key; a smaller value of the config stays."""
DROPPED = ("rope_scaling", "rope_parameters", "full_attention_interval")
"""Keys whose values only fit the full-size heads; the library's defaults serve."""
PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")


_LEFT_OUT = object()
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")


def _small(key: str, value: Any, config: Mapping[str, Any]) -> Any:
    """One value of a tiny config; `_LEFT_OUT` for a key that only fits the full size."""
    if isinstance(value, Mapping):
        if key.endswith("_config"):
            return small_config(value)
        if "mrope_section" in value:
            return {**value, "mrope_section": [HEAD // 2 - 6, 3, 3]}  # halves of a head
    if key in SMALL and isinstance(value, int) and not isinstance(value, bool):
        return min(value, SMALL[key])
    if key in PER_LAYER and isinstance(value, list):
        return value[: SMALL["num_hidden_layers"]]
    if key in _KEY_VALUE_HEADS and isinstance(value, int):
        heads = config.get("num_attention_heads", config.get("n_head", value))
        return SMALL["num_attention_heads"] if value == heads else min(value, 2)
    if key.endswith("_token_id"):
        return min(value, SMALL["vocab_size"] - 1) if isinstance(value, int) else None
    return _LEFT_OUT if key in DROPPED else value


def small_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of the same architecture with tiny sizes, nested parts (a vision tower, a text model)
    included.
    """
    made = {key: _small(key, value, config) for key, value in config.items()}
    made = {key: value for key, value in made.items() if value is not _LEFT_OUT}
    if "vocab_size" in made:  # a class's own default may lie beyond a tiny vocabulary
        made = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **made}
    return made


def small_setup(setup: Setup) -> Setup:
    """The same choices on the CPU, over a short batch; a forced CUDA kernel of attention becomes the CPU's
    own.
    """
    return setup.replaced(
        device="cpu",
        gpu=None,
        sequence_length=min(setup.sequence_length, SEQUENCE),
        micro_batch=min(setup.micro_batch, BATCH),
        attention="sdpa" if setup.attention.startswith(("sdpa-", "flash")) else setup.attention,
    )


def rehearsal(cases: CaseList) -> CaseList:
    """Every case as its rehearsal; caps and searches for a boundary are the CUDA allocator's and fall away,
    equal cases are kept once.
    """
    found: dict[tuple[Any, ...], Case] = {}
    for case in cases.cases:
        made = dataclasses.replace(
            case,
            config=small_config(case.config),
            setup=small_setup(case.setup),
            steps=STEPS,
            cap_bytes=None,
            boundary=False,
            deadline=DEADLINE,
        )
        found.setdefault((case.model, made.setup.identity()), made)
    return CaseList(f"{cases.name} (rehearsal)", "cpu", tuple(found.values()))
