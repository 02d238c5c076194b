"""Pictures of more families in the trace: what the processor makes reaches the real class's tower, which has
gradients, states and saved tensors then that text alone does not give it.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from test_towers import SQUARES, TEXT

from memplan.planner.inputs.setup import resolve
from memplan.planner.trace.engine import trace

pytestmark = pytest.mark.trace

MROPE = {"rope_theta": 10000.0, "rope_type": "default", "mrope_section": [2, 3, 3]}
PATCHES = {
    "depth": 3,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_heads": 4,
    "out_hidden_size": 64,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
HEADED = {**TEXT, "head_dim": 16, "pad_token_id": 0}
PIXTRAL = {**SQUARES, "model_type": "pixtral", "image_size": 112, "head_dim": 12}
IDS = {"image_token_id": 300, "video_token_id": 301}
MORE: dict[str, dict[str, Any]] = {
    "mistral3": {
        "model_type": "mistral3",
        "image_token_index": 300,
        "spatial_merge_size": 2,
        "text_config": {**HEADED, "model_type": "mistral"},
        "vision_config": PIXTRAL,
    },
    "llava+pixtral": {
        "model_type": "llava",
        "image_token_index": 300,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "text_config": {**HEADED, "model_type": "mistral"},
        "vision_config": PIXTRAL,
    },
    "gemma4": {
        **IDS,
        "model_type": "gemma4",
        "audio_config": None,
        "text_config": {
            **HEADED,
            "model_type": "gemma4_text",
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "vocab_size_per_layer_input": 320,
        },
        "vision_config": {
            **SQUARES,
            "model_type": "gemma4_vision",
            "num_key_value_heads": 4,
            "head_dim": 12,
            "global_head_dim": 12,
            "patch_size": 16,
            "position_embedding_size": 256,
        },
    },
    "glm46v": {
        **IDS,
        "model_type": "glm46v",
        "text_config": {**HEADED, "model_type": "glm4v_text", "rope_parameters": MROPE},
        "vision_config": {**PATCHES, "image_size": 56, "model_type": "glm4v_vision"},
    },
    "cohere_compass": {
        **IDS,
        "model_type": "cohere_compass",
        "text_config": {
            **HEADED,
            "model_type": "cohere_compass_text",
            "sliding_window": 128,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {"sliding_attention": MROPE, "full_attention": None},
        },
        "vision_config": {
            **PATCHES,
            "model_type": "cohere_compass_vision",
            "deepstack_visual_indexes": [0, 1],
            "num_position_embeddings": 64,
        },
    },
    "paddleocr_vl": {
        **IDS,
        "model_type": "paddleocr_vl",
        "text_config": {**HEADED, "model_type": "paddleocr_vl_text", "rope_parameters": MROPE},
        "vision_config": {**SQUARES, "model_type": "paddleocr_vl_vision", "spatial_merge_size": 2},
    },
    "mllama": {
        "model_type": "mllama",
        "image_token_index": 300,
        "text_config": {
            **TEXT,
            "model_type": "mllama_text_model",
            "pad_token_id": 0,
            "num_hidden_layers": 3,
            "cross_attention_layers": [1],
        },
        "vision_config": {
            **SQUARES,
            "model_type": "mllama_vision_model",
            "num_global_layers": 2,
            "attention_heads": 4,
            "vision_output_dim": 144,
            "intermediate_layers_indices": [0, 1],
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1], [2, 2], [1, 3], [3, 1], [1, 4], [4, 1]],
        },
    },
    "qwen3_5": {
        **IDS,
        "model_type": "qwen3_5",
        "text_config": {
            **HEADED,
            "model_type": "qwen3_5_text",
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "layer_types": ["linear_attention", "full_attention"],
        },
        "vision_config": {**PATCHES, "model_type": "qwen3_5", "num_position_embeddings": 64},
    },
}
FAST = ("mistral3", "mllama")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MORE]
)
def test_a_picture_goes_through_the_tower(name: str) -> None:
    """AdamW has states of what had a gradient: with a picture the tower too."""
    base = {"method": "full", "recipe": "hf", "micro_batch": 2, "sequence_length": 512, "load": "random"}
    pictures, text = (
        trace(MORE[name], resolve({**base, "gpu": "a100-80gb", "images": images}))
        for images in (("1@112x84",), ("none",))
    )
    assert pictures.not_modelled == () and pictures.model.parameters == text.model.parameters
    saved = [found.moment("forward").components["activations"] for found in (pictures, text)]
    states = [found.moment("optimizer_step").components["optimizer_states"] for found in (pictures, text)]
    assert saved[0] > saved[1] and states[0] > states[1]
