"""VIDEOS: how each vision-language model's processor turns a video into frames, tokens and pixel values.

Adding a model type whose processor is one of `FRAMES`' is adding a row here; its tower is the one of
PICTURES. Sizes are those of the published checkpoints' video_preprocessor_config.json, or of
preprocessor_config.json where there is no such file (transformers 5.24 video_processing_utils.py
get_video_processor_dict).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Frames = Literal["bounded", "budget", "squares"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRule:
    """One model type's video processor."""

    model_type: str
    frames: Frames
    """bounded: each frame resized as a picture of patches, two frames to a patch (Qwen2-VL); budget: the same
    with bounds of the whole video (Qwen3-VL); squares: each frame one square of fixed tokens.
    """
    source: str
    least: int = 0
    """bounded: of a frame's pixels. budget: of the video's, frames times pixels."""
    most: int = 0
    fps: float | None = None
    """Frames that are taken of a second where nobody says it; None: the processor takes all that it gets."""
    fewest: int = 1
    longest: int = 10**6
    """Frames that are taken of a video whose seconds are said: at least, at most."""
    pairs: bool = False
    """An odd frame of those taken is left out."""
    rounds: bool = False
    """Seconds times `fps` is rounded, not cut."""
    markers: int = 0
    """Tokens around a video, its sentence among them."""
    stamp: Literal["", "seconds", "clock", "number"] = ""
    """The words before each frame, or each patch of frames: its seconds, minutes and seconds, or number."""
    apart: bool = True
    """Whether the model reads videos as other tensors than pictures, so that a row may have both."""
    timed: bool = False
    """The batch says how many seconds a patch of frames takes."""


def _table(*rows: VideoRule) -> dict[str, VideoRule]:
    return {row.model_type: row for row in rows}


_QWEN2 = "transformers 5.24 models/qwen2_vl/video_processing_qwen2_vl.py smart_resize"
_QWEN3 = "transformers 5.24 models/qwen3_vl/video_processing_qwen3_vl.py smart_resize"

VIDEOS: dict[str, VideoRule] = _table(
    *(
        VideoRule(
            model_type=name,
            frames="bounded",
            source=f"{_QWEN2}; Qwen/{published} preprocessor_config.json, the bounds of pictures",
            least=56 * 56,
            most=16384 * 28 * 28,
            fewest=4,
            longest=768,
            pairs=True,
            markers=2,
            timed=name == "qwen2_5_vl",
        )
        for name, published in (
            ("qwen2_vl", "Qwen2-VL-7B-Instruct"),
            ("qwen2_5_vl", "Qwen2.5-VL-7B-Instruct"),
        )
    ),
    *(
        VideoRule(
            model_type=name,
            frames="budget",
            source=f"{_QWEN3}; Qwen/{published} video_preprocessor_config.json",
            least=4096,
            most=24576 * 32 * 32,
            fps=2,
            fewest=4,
            longest=768,
            markers=2,
            stamp="seconds",
        )
        for name, published in (
            ("qwen3_vl", "Qwen3-VL-8B-Instruct"),
            ("qwen3_vl_moe", "Qwen3-VL-30B-A3B-Instruct"),
        )
    ),
    VideoRule(
        model_type="smolvlm",
        frames="squares",
        source="transformers 5.24 models/smolvlm/video_processing_smolvlm.py resize, processing_smolvlm.py "
        "replace_video_token; HuggingFaceTB/SmolVLM2-2.2B-Instruct preprocessor_config.json video_sampling",
        fps=1,
        longest=64,
        rounds=True,
        markers=29,
        stamp="clock",
        apart=False,
    ),
    VideoRule(
        model_type="internvl",
        frames="squares",
        source="transformers 5.24 models/internvl/video_processing_internvl.py, processing_internvl.py "
        "replace_video_token; OpenGVLab/InternVL3-8B-hf",
        stamp="number",
        apart=True,
    ),
)
