"""Weights of vision towers and projectors in the formula, against the models that transformers builds; and
that a model with one is never taken for its language part.
"""

from __future__ import annotations

from typing import Any

import pytest

import memplan
from memplan.planner.formula.engine import plan
from memplan.planner.inputs.families.table import read_config
from memplan.planner.inputs.families.towers import TOWERS
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 320,
    "max_position_embeddings": 4096,
}
SQUARES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "model_type": "gemma3",
        "mm_tokens_per_image": 16,
        "image_token_index": 300,
        "text_config": {**TEXT, "model_type": "gemma3_text", "head_dim": 16, "sliding_window": 512},
        "vision_config": {**SQUARES, "model_type": "siglip_vision_model", "vision_use_head": False},
    },
    **{
        name: {
            "model_type": name,
            "scale_factor": 2,
            "image_token_id": 300,
            "text_config": {**TEXT, "model_type": "llama", "pad_token_id": 0},
            "vision_config": {**SQUARES, "model_type": f"{name}_vision"},
        }
        for name in ("idefics3", "smolvlm")
    },
    "llava": {
        "model_type": "llava",
        "image_token_index": 300,
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**SQUARES, "model_type": "clip_vision_model", "projection_dim": 32},
    },
    "qwen2_vl": {
        **TEXT,
        **MROPE,
        "model_type": "qwen2_vl",
        "image_token_id": 300,
        "vision_config": {"depth": 3, "embed_dim": 48, "num_heads": 4, "hidden_size": 64, "mlp_ratio": 2},
    },
    "qwen2_5_vl": {
        **TEXT,
        **MROPE,
        "model_type": "qwen2_5_vl",
        "image_token_id": 300,
        "vision_config": {
            "depth": 3,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_heads": 4,
            "out_hidden_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [2],
        },
    },
    "qwen3_vl": {
        "model_type": "qwen3_vl",
        "image_token_id": 300,
        "text_config": {
            **TEXT,
            "model_type": "qwen3_vl_text",
            "head_dim": 16,
            "rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]},
        },
        "vision_config": {
            "depth": 3,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_heads": 4,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_towers_weights_are_the_models(name: str) -> None:
    """Every element, in linear layers and elsewhere, as transformers builds the model."""
    pytest.importorskip("transformers")
    import torch

    from memplan.planner.run.model import skeleton

    model = skeleton(CONFIGS[name], "bfloat16", "sdpa")
    spec = read_config(CONFIGS[name])
    assert spec.parameters == sum(p.numel() for p in model.parameters())
    inside = [
        module
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and any(part in path for part in ("vision", "visual", "projector", "connector"))
    ]
    linear = next(extra for extra in spec.extras if extra.kind == "tower_linear")
    assert linear.shape == (sum(module.weight.numel() for module in inside),)


def test_every_tower_with_a_rule_is_held_against_its_model() -> None:
    assert {*CONFIGS, "qwen3_vl_moe"} == set(TOWERS), "a new rule comes with a config above"


def test_the_formula_counts_a_towers_weights_and_says_what_it_leaves_out() -> None:
    """A language part alone had no word of the rest and a verdict of fits."""
    config = CONFIGS["gemma3"]
    spec = read_config(config)
    alone = read_config(config["text_config"])
    setup = resolve({"method": "full", "gpu": "a100-80gb", "sequence_length": 128})
    found, language = plan(spec, setup), plan(alone, setup)
    held = [p.moment("load").components["weights"] for p in (found, language)]
    assert held[0] - held[1] >= 2 * (spec.parameters - alone.parameters) > 0
    assert found.trainable_parameters == language.trainable_parameters
    said = memplan.plan(config, setup, engine="formula")
    assert said.not_modelled and said.gpus[0].verdict is None


def test_four_bits_reach_a_towers_linear_layers() -> None:
    """As bitsandbytes replaces every nn.Linear of a model."""
    spec = read_config(CONFIGS["gemma3"])
    setup = resolve({"method": "qlora", "gpu": "a100-80gb", "sequence_length": 128})
    rows = {row.name: row.dtype for row in plan(spec, setup).moment("load").rows}
    assert rows["vision tower and projector: linear layers"] == "nf4"
    assert rows["vision tower and projector: everything else"] != "nf4"


def test_the_formula_refuses_pictures() -> None:
    setup = resolve({"images": ("1@56x56",), "sequence_length": 128})
    with pytest.raises(UsageError, match="formula has no rule for pictures .*1@56x56"):
        plan(read_config(CONFIGS["gemma3"]), setup)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 10**30, "abc", True, 1.5])
def test_a_towers_size_is_a_number_of_something(value: object) -> None:
    """A string would be repeated, a zero divided by."""
    broken = CONFIGS["gemma3"]["vision_config"] | {"patch_size": value}
    with pytest.raises(UsageError, match="vision_config.patch_size is .* expected a whole number from 1"):
        read_config(CONFIGS["gemma3"] | {"vision_config": broken})
    with pytest.raises(UsageError, match="^scale_factor is "):
        read_config(CONFIGS["smolvlm"] | {"scale_factor": value})
