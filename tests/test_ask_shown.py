"""Pictures and videos in a question: their sizes are read, and the command that traces them is named."""

from __future__ import annotations

import pytest

from memplan.planner.tables.errors import UsageError
from memplan.validate.ask import read
from memplan.validate.questions.replies import ask


@pytest.mark.parametrize(
    ("sentence", "images"),
    [
        ("fine-tune qwen2.5-vl-7b on 8 frame videos of 720p", "1@1280x720x8"),
        ("can I qlora qwen2.5-vl-7b with two 1024x768 images on a 24GB card?", "2@1024x768"),
        ("lora qwen3-vl-8b videos at 1080p with 16 frames", "1@1920x1080x16"),
        ("3 images of 448x448 qwen2.5-vl-7b lora", "3@448x448"),
        ("16帧640x480视频 qwen2.5-vl-7b 微调", "1@640x480x16"),
        ("qwen2.5-vl-3b lora 一张1024x1024的图 需要多少显存", "1@1024x1024"),
    ],
)
def test_sizes_in_a_sentence(sentence: str, images: str) -> None:
    assert read(sentence).fields["images"] == (images,)


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("lora qwen3-vl-2b with 640x480 videos on a T4", "how many frames"),
        ("lora qwen3-vl-2b with 8 frame videos", "no size"),
        ("fine-tune qwen2.5-vl-7b on 8 frame videos of 720p", "--images 1@1280x720x8 traces them"),
    ],
)
def test_what_is_missing_is_named(sentence: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ask(sentence)
