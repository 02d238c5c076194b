"""Depth costs nothing, and changes nothing: the stream synthesized from a few layers is the stream of every
layer, event for event.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

from memplan.planner.allocator.replay import replay
from memplan.planner.inputs.setup import resolve
from memplan.planner.trace.device.target import target_of
from memplan.planner.trace.events import layer_extrapolation
from memplan.planner.trace.events.record import record

pytestmark = pytest.mark.trace

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "max_position_embeddings": 256,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
LLAMA = {"model_type": "llama", **BASE, "num_hidden_layers": 12}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("lora", LLAMA, {"method": "lora"}),
    ("full-hf-checkpointed", LLAMA, {"method": "full", "recipe": "hf", "checkpointing": "non_reentrant"}),
    ("qlora-reentrant", LLAMA, {"method": "qlora", "checkpointing": "reentrant"}),
    ("adalora", LLAMA, {"method": "adalora", "init_rank": 4, "target_rank": 2}),
    ("freeze", LLAMA, {"method": "freeze", "checkpointing": "non_reentrant"}),
    (
        "every-third-layer",
        {**LLAMA, "num_hidden_layers": 32},
        {"method": "full", "checkpointing": "non_reentrant", "checkpoint_every": 3},
    ),
    ("loop", LLAMA, {"method": "full", "optimizer_mode": "loop"}),
    ("eight-bit", LLAMA, {"method": "full", "optimizer": "adamw_bnb_8bit"}),
    (
        "sliding-window",
        {"model_type": "gemma2", **BASE, "num_hidden_layers": 17},
        {"method": "lora", "checkpointing": "non_reentrant"},
    ),
    (
        "dense-then-experts",
        {
            "model_type": "deepseek_v3",
            **BASE,
            "num_hidden_layers": 17,
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "first_k_dense_replace": 3,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
        },
        {"method": "full"},
    ),
    (
        "recurrent",
        {"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 9, "vocab_size": 128},
        {"method": "full"},
    ),
]
SLOW_CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "five-local-one-global",
        {"model_type": "gemma3_text", **BASE, "num_hidden_layers": 62},
        {"method": "lora", "recipe": "hf"},
    ),
    (
        "hybrid",
        {
            "model_type": "qwen3_next",
            **BASE,
            **EXPERTS,
            "num_hidden_layers": 48,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        {"method": "lora", "checkpointing": "non_reentrant"},
    ),
    (
        "dense-then-61",
        {
            "model_type": "deepseek_v3",
            **BASE,
            "num_hidden_layers": 61,
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "first_k_dense_replace": 3,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
        },
        {"method": "lora", "recipe": "hf"},
    ),
    (
        "mamba-attention-experts",
        {
            "model_type": "jamba",
            **BASE,
            "num_hidden_layers": 29,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 8,
            "mamba_dt_rank": 8,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "expert_layer_period": 3,
            "expert_layer_offset": 2,
        },
        {"method": "lora", "targets": "attention"},
    ),
    *(
        (f"{name}-32", {**config, "num_hidden_layers": 32}, fields)
        for name, config, fields in CASES
        if config is LLAMA
    ),
    # A period that does not divide the depth, in three more hybrids.
    (
        "convolutions-attention",
        {
            "model_type": "lfm2",
            **BASE,
            "num_hidden_layers": 44,
            "layer_types": [*["conv", "conv", "full_attention"] * 14, "conv", "conv"],
        },
        {"method": "full", "recipe": "hf"},
    ),
    (
        "mamba2-attention",
        {
            "model_type": "granitemoehybrid",
            **BASE,
            "num_hidden_layers": 42,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 32,
            "mamba_d_state": 8,
            "layer_types": [*["mamba", "mamba", "mamba", "attention"] * 10, "mamba", "mamba"],
        },
        {"method": "full", "recipe": "hf"},
    ),
    (
        "lightning-attention",
        {
            "model_type": "minimax",
            **BASE,
            "num_hidden_layers": 46,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "block_size": 16,
            "layer_types": [*[*["linear_attention"] * 3, "full_attention"] * 11, *["linear_attention"] * 2],
        },
        {"method": "full", "recipe": "hf"},
    ),
    (
        "recurrent-attention",
        {"model_type": "recurrent_gemma", **BASE, "num_hidden_layers": 26, "lru_width": 64},
        {"method": "full"},
    ),
    ("offload", LLAMA, {"method": "full", "checkpointing": "non_reentrant", "checkpoint_offload": True}),
    ("int8", LLAMA, {"method": "qlora", "quant_type": "int8", "recipe": "hf"}),
    (
        "adalora-hf",
        LLAMA,
        {"method": "adalora", "recipe": "hf", "init_rank": 4, "target_rank": 2, "checkpointing": "reentrant"},
    ),
]


def same_as_every_layer(config: dict[str, Any], fields: dict[str, Any]) -> None:
    setup = resolve({"recipe": "raw", "sequence_length": 32, **fields})
    target = target_of(setup)
    quick, counted = record(config, setup, target)
    whole, facts = record(config, setup, target, full=True)
    assert counted.traced_layers is not None and counted.traced_layers < config["num_hidden_layers"], (
        "nothing was synthesized"
    )
    assert layer_extrapolation.canonical(quick.events) == layer_extrapolation.canonical(whole.events)
    assert [(m.step, m.moment, m.begin, m.end) for m in quick.marks] == [
        (m.step, m.moment, m.begin, m.end) for m in whole.marks
    ]
    assert [s.component for s in quick.storages] == [s.component for s in whole.storages]
    assert replay(quick.events).reserved == replay(whole.events).reserved
    counts = ("parameters", "trainable", "total", "checkpoint_bytes", "host_bytes")
    assert [getattr(counted, name) for name in counts] == [getattr(facts, name) for name in counts]


LONG = ("sliding-window", "adalora")  # 20 s each


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        pytest.param(*case[1:], id=case[0], marks=[pytest.mark.slow] if case[0] in LONG else [])
        for case in CASES
    ],
)
def test_synthesized_stream_is_the_traced_one(config: dict[str, Any], fields: dict[str, Any]) -> None:
    same_as_every_layer(config, fields)


def test_states_made_from_no_tensor_belong_to_the_layer_of_their_parameter() -> None:
    """torchao's: codes, scales and tables are made from sizes alone."""
    pytest.importorskip("torchao")
    same_as_every_layer(LLAMA, {"method": "full", "optimizer": "adamw_torch_4bit"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "fields"), [case[1:] for case in SLOW_CASES], ids=[case[0] for case in SLOW_CASES]
)
def test_long_periods_and_hybrids(config: dict[str, Any], fields: dict[str, Any]) -> None:
    same_as_every_layer(config, fields)


def test_runs_cover_the_layers_in_order() -> None:
    assert layer_extrapolation.runs("aaabbbbbbbb") == [
        layer_extrapolation.Run(0, 1, 1),
        layer_extrapolation.Run(1, 1, 1),
        layer_extrapolation.Run(2, 1, 1),
        layer_extrapolation.Run(3, 1, 8),
    ]
    assert layer_extrapolation.runs("sfsfsfsfsfs") == [
        layer_extrapolation.Run(0, 2, 5),
        layer_extrapolation.Run(10, 1, 1),
    ]
    layout = layer_extrapolation.runs("a" * 10)
    assert layer_extrapolation.kept_layers(layout) == [0, 1, 2] and layer_extrapolation.templates(
        layout, full=True
    ) == [0, *[1] * 8, 2]


def test_a_stream_that_differs_is_not_stretched() -> None:
    """A storage of the middle layer that is twice as large in the longer model: growth must refuse it."""
    setup = resolve({"recipe": "raw", "sequence_length": 32, "method": "lora", "load": "random"})
    small, _ = record({**LLAMA, "num_hidden_layers": 3}, setup, target_of(setup), full=True)
    longer, _ = record({**LLAMA, "num_hidden_layers": 4}, setup, target_of(setup), full=True)
    layout = layer_extrapolation.runs("a" * 10)
    stand_ins = layer_extrapolation.templates(layout, full=False, longer=0)
    assert layer_extrapolation.growth(small, longer, stand_ins) == {}
    position = next(
        i
        for i, (kind, sid, _) in enumerate(longer.events)
        if kind == "alloc" and longer.storages[sid].layer == 1
    )
    kind, sid, nbytes = longer.events[position]
    longer.events[position] = (kind, sid, 2 * nbytes)
    with pytest.raises(layer_extrapolation.NotPeriodic):
        layer_extrapolation.growth(small, longer, stand_ins)
