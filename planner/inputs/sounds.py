"""Speech models that transcribe: what their encoder reads of a sound, and the tokens that their decoder is
trained on.

Whisper's feature extractor pads or cuts every sound to 30 s, 3,000 frames of 80 or 128 mel bins
(transformers 5.24 models/whisper/feature_extraction_whisper.py), which two convolutions halve once, to
`max_source_positions` (modeling_whisper.py WhisperEncoder).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from memplan.planner.tables.errors import UsageError, shown

SPEECH = ("whisper",)
"""Model types with this encoder."""
TASK = "seq2seq"
HALVED = 2
"""Frames to one position of the encoder."""


class Sound(NamedTuple):
    """An example: mel bins x frames of the encoder's features, and the most tokens that its decoder takes."""

    bins: int
    frames: int
    most_tokens: int


def is_speech(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a model that reads features of sounds."""
    return config.get("model_type") in SPEECH


def sound_of(config: Mapping[str, Any]) -> Sound:
    """The sound that a model's feature extractor makes. UsageError where a number is missing."""
    numbers = {key: config.get(key, usual) for key, usual in _USUAL.items()}
    for key, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"config.json: {key} is {shown(value)}, expected a whole number above 0")
    return Sound(
        numbers["num_mel_bins"],
        HALVED * numbers["max_source_positions"],
        numbers["max_target_positions"],
    )


_USUAL = {"num_mel_bins": 80, "max_source_positions": 1500, "max_target_positions": 448}
"""transformers 5.24 models/whisper/configuration_whisper.py."""


def lengths(config: Mapping[str, Any], setup: Any) -> dict[str, Any]:
    """Frames and tokens of an example where nobody said them. UsageError for others than the model takes."""
    sound = sound_of(config)
    if setup.task != TASK:
        raise UsageError(
            f"task '{setup.task}': a model of type '{config['model_type']}' is trained to transcribe: use "
            f"--task {TASK}"
        )
    said = setup.origins.get("sequence_length") not in (None, "default")
    if said and setup.sequence_length != sound.frames:
        raise UsageError(
            f"sequence_length (--seq) {setup.sequence_length:,}: every sound is {sound.frames:,} frames "
            "(30 s); leave it out, and say the tokens of a transcript with --set target_length=N"
        )
    if setup.target_length is not None and setup.target_length > sound.most_tokens:
        raise UsageError(
            f"target_length {setup.target_length}: the decoder has {sound.most_tokens} positions: use at "
            "most as many"
        )
    return {"sequence_length": sound.frames, "target_length": setup.target_length or sound.most_tokens}


def said_of(config: Mapping[str, Any], setup: Any) -> str:
    """The sentence about a speech model's examples, "" for another model."""
    if not is_speech(config):
        return ""
    sound, tokens = sound_of(config), setup.target_length
    return f"every sound is {sound.bins} x {sound.frames:,} features (30 s); {tokens} tokens of transcript"
