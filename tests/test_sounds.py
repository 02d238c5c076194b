"""Speech models: Whisper's encoder reads 30 s of features, its decoder is trained on a transcript."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
pytest.importorskip("accelerate")

import memplan
from memplan import api
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.prediction import Prediction
from memplan.planner.run.model import skeleton
from memplan.planner.tables.errors import UsageError
from memplan.planner.trace.engine import trace

pytestmark = pytest.mark.trace

WHISPER: dict[str, Any] = {
    "model_type": "whisper",
    "d_model": 64,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "num_mel_bins": 80,
    "max_source_positions": 100,
    "max_target_positions": 48,
    "vocab_size": 320,
    "decoder_start_token_id": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "is_encoder_decoder": True,
}


def setup_of(config: dict[str, Any] = WHISPER, **fields: Any) -> Setup:
    base = {"task": "seq2seq", "method": "full", "recipe": "hf", "micro_batch": 2, "gpu": "a100-80gb"}
    return api.request(config, **{**base, "load": "random", **fields})[1]


@pytest.fixture(scope="module")
def full() -> Prediction:
    return trace(WHISPER, setup_of())


def test_the_encoder_is_trained_with_the_decoder(full: Prediction) -> None:
    """Every weight of the real class, and AdamW's two states of each: a decoder alone has half of them."""
    parameters = sum(p.numel() for p in skeleton(WHISPER, "bfloat16", "sdpa").parameters())
    assert full.model.architecture == "WhisperForConditionalGeneration"
    assert full.model.parameters == full.trainable_parameters == parameters
    held = full.moment("optimizer_step").components["optimizer_states"]
    assert 2 * 2 * parameters <= held <= 2 * 2 * parameters + 512 * 2 * 150


def test_what_the_encoder_saves_follows_the_frames(full: Prediction) -> None:
    """Twice the frames: each encoder layer saves more than eight tensors of its width twice as long."""
    longer = {**WHISPER, "max_source_positions": 200}
    found = trace(longer, setup_of(longer))
    saved = [each.moment("forward").components["activations"] for each in (full, found)]
    assert saved[1] - saved[0] > 2 * 3 * 8 * 2 * 100 * 64


def test_frames_and_tokens_are_the_models() -> None:
    assert (setup_of().sequence_length, setup_of().target_length) == (200, 48)
    assert setup_of(target_length=20).target_length == 20
    said = memplan.plan(WHISPER, setup_of(target_length=20, method="lora")).assumptions
    assert any("80 x 200 features (30 s); 20 tokens" in each for each in said)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"task": "sft"}, "use --task seq2seq"),
        ({"sequence_length": 2048}, "every sound is 200 frames"),
        ({"target_length": 49}, "the decoder has 48 positions"),
        ({"images": ("1@10x10",)}, "has no pictures, whose models read text or sounds"),
    ],
)
def test_what_a_speech_model_does_not_take(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        setup_of(**fields)


def test_a_decoder_alone_is_never_its_answer() -> None:
    """transformers lists a causal class too, which has no encoder."""
    with pytest.raises(UsageError, match="use --task seq2seq"):
        trace(WHISPER, resolve({"sequence_length": 200}))
