"""Encoders, encoder-decoders and the text part of vision-language models: trained as transformers trains
them, predicted as measured.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("peft")

from memplan.planner.inputs.setup import resolve
from memplan.planner.trace.engine import trace
from memplan.profiler.measure import profile

pytestmark = pytest.mark.trace
BERT = {
    "model_type": "bert",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 4096,
    "max_position_embeddings": 256,
}
T5 = {
    "model_type": "t5",
    "d_model": 128,
    "d_ff": 256,
    "d_kv": 32,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 4096,
    "decoder_start_token_id": 0,
}
VISION = {
    "model_type": "qwen2_5_vl",
    "text_config": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 4096,
        "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [4, 6, 6]},
    },
    "vision_config": {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "out_hidden_size": 128,
        "fullatt_block_indexes": [1],
    },
}


@pytest.mark.parametrize(
    ("config", "cls", "method"),
    [
        (BERT, "BertForMaskedLM", "full"),
        (BERT, "BertForMaskedLM", "lora"),
        (T5, "T5ForConditionalGeneration", "full"),
        (T5, "T5ForConditionalGeneration", "qlora"),
        (VISION, "Qwen2_5_VLForConditionalGeneration", "lora"),
    ],
)
def test_a_model_that_is_no_decoder_is_measured_as_predicted(
    config: dict[str, Any], cls: str, method: str
) -> None:
    fields = {
        "method": method,
        "recipe": "raw",
        "device": "cpu",
        "sequence_length": 128,
        "micro_batch": 2,
        "load": "random",
    }
    setup = resolve({**fields, "checkpointing": "none"})
    predicted, measured = trace(config, setup), profile(config, setup, steps=1)
    assert measured.outcome == "ok", measured.failure
    assert measured.model["architecture"] == cls
    for moment in predicted.moments:
        assert moment.allocated_bytes == pytest.approx(
            measured.moment(moment.moment).allocated_bytes, rel=0.015
        ), moment.moment


def test_an_encoder_decoder_trains_both_halves() -> None:
    setup = resolve(
        {"method": "lora", "recipe": "raw", "device": "cpu", "sequence_length": 64, "load": "random"}
    )
    square, forward = 16 * (128 + 128), 2 * 16 * (128 + 256)  # what LoRA of rank 16 adds to one, to two
    assert trace(T5, setup).trainable_parameters == 2 * (4 * square + forward) + 2 * (8 * square + forward)
