"""Frames, tokens and words of videos, against the processors' own code, which without torchvision is read
from its source.
"""

from __future__ import annotations
import __future__

import ast
import math
import re
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("PIL")

import numpy as np
import torch
from test_pictures import CONFIGS, functions_of, source_of

from memplan.planner.inputs.picture_sizes import Limits, Picture
from memplan.planner.inputs.pictures import pictures_of, read_sizes
from memplan.planner.inputs.setup import resolve
from memplan.planner.inputs.video_sizes import FrameLimits, Seen, frames_of, video
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.videos import VIDEOS

SIZES = ((1280, 720, 8), (640, 480, 16), (100, 100, 5), (1920, 1080, 64), (31, 517, 3), (448, 448, 2))
"""Width, height, frames: even and odd, tiny, more pixels than any bound."""
QWENS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SECONDS = (1, 3, 10, 90, 1000)


def made(name: str, width: int, height: int, frames: int, limits: Limits | None = None) -> Picture:
    return video(CONFIGS[name], Seen(width, height, frames), FrameLimits(pixels=limits or Limits()))


def processor_of(name: str, **fields: Any) -> Any:
    """The methods of a video processor of transformers on an object that has its fields."""
    path = f"models/{name}/video_processing_{name}.py"
    names = functions_of(path) | {"np": np, "torch": torch, "math": math}
    (found,) = (
        node
        for node in ast.parse(source_of(path)).body
        if isinstance(node, ast.ClassDef) and node.name.endswith("VideoProcessor")
    )
    methods = [node for node in found.body if isinstance(node, ast.FunctionDef)]
    for node in methods:
        node.decorator_list = []
    plain = ast.ClassDef(found.name, [], [], methods, [])
    module = ast.fix_missing_locations(ast.Module([plain], []))
    exec(compile(module, path, "exec", flags=__future__.annotations.compiler_flag), names)
    processor = object.__new__(names[found.name])
    for key, value in fields.items():
        setattr(processor, key, value)
    return processor


def qwen(name: str, **fields: Any) -> Any:
    """A Qwen's video processor with the bounds of its row."""
    rule, vision = VIDEOS[name], CONFIGS[name]["vision_config"]
    return processor_of(
        "qwen3_vl" if name == "qwen3_vl" else "qwen2_vl",
        size={"shortest_edge": rule.least, "longest_edge": rule.most},
        patch_size=vision["patch_size"],
        merge_size=vision["spatial_merge_size"],
        temporal_patch_size=2,
        cap_pixels_per_frame=None,
        **fields,
    )


def words_of(text: str, special: tuple[str, ...]) -> int:
    """Tokens of a prompt: its special ones, words, signs and single digits."""
    parts = re.split("|".join(map(re.escape, special)), text)
    marked = len(parts) - 1
    return marked + sum(len(re.findall(r" ?[A-Za-z]+|\d| ?[^\sA-Za-z\d]+|\n+|\s", part)) for part in parts)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", QWENS)
def test_patches_of_qwens_videos(name: str, size: tuple[int, int, int]) -> None:
    width, height, frames = size
    processor = qwen(name)
    for bounds in (None, (100_000, 400_000)):
        changed = {} if bounds is None else {"size": dict(zip(processor.size, bounds, strict=True))}
        patches = processor.get_num_of_video_patches(frames, height, width, changed)
        found = made(name, width, height, frames, Limits(*(bounds or (None, None))))
        patch = CONFIGS[name]["vision_config"]["patch_size"]
        assert found.grid == (frames + 1) // 2
        assert found.grid * (found.height // patch) * (found.width // patch) == patches
        assert found.tokens == patches // 4


@pytest.mark.parametrize("seconds", SECONDS)
def test_frames_that_are_taken_of_seconds(seconds: int) -> None:
    """Of a film of 24 frames a second."""
    seen = Seen(640, 480, seconds=seconds)
    film: dict[str, Any] = {"total_num_frames": 24 * seconds, "fps": 24, "duration": seconds}

    class Film(dict[str, Any]):
        __getattr__ = dict.__getitem__

    for name, fps in (("qwen2_5_vl", 1), ("qwen2_5_vl", 2), ("qwen3_vl", None), ("qwen3_vl", 1)):
        rule = VIDEOS[name]
        processor = qwen(name, fps=rule.fps, num_frames=None, min_frames=rule.fewest, max_frames=rule.longest)
        taken = len(processor.sample_frames(Film(film), fps=fps))
        assert frames_of(rule, seen, FrameLimits(fps=fps)) == taken, name
    smol = processor_of("smolvlm", fps=1, num_frames=64)
    assert frames_of(VIDEOS["smolvlm"], seen, FrameLimits()) == len(smol.sample_frames(Film(film)))


def test_the_words_of_qwen3s_frames() -> None:
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    special = ("<|vision_start|>", "<|video_pad|>", "<|vision_end|>")
    words: Any = object.__new__(Qwen3VLProcessor)
    words.vision_start_token, words.video_token, words.vision_end_token = special
    words.video_processor = SimpleNamespace(merge_size=2, temporal_patch_size=2)
    for frames in (8, 40):
        found = made("qwen3_vl", 64, 64, frames)
        grid = [found.grid, found.height // 16, found.width // 16]
        seen = SimpleNamespace(fps=2, frames_indices=list(range(frames)))
        text = words.replace_video_token(
            {"video_grid_thw": torch.tensor([grid]), "video_metadata": [seen]}, video_idx=0
        )
        assert text.count("<|video_pad|>") == found.tokens and found.parts == frames // 2
        assert words_of(text, special) + 2 == found.length


def test_the_words_of_smolvlms_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.smolvlm import processing_smolvlm

    special = ("<fake>", "<global-img>", "<image>")
    words: Any = object.__new__(processing_smolvlm.SmolVLMProcessor)
    words.fake_image_token, words.global_image_token, words.image_token = special
    words.image_seq_len = 1
    monkeypatch.setattr(processing_smolvlm, "num2words", lambda count: "eight")
    found = made("smolvlm", 640, 480, 8)
    seen = SimpleNamespace(fps=1, timestamps=list(range(8)), duration=8)
    pixels = torch.zeros(1, 8, 3, 56, 56)
    text = words.replace_video_token({"pixel_values": pixels, "video_metadata": [seen]}, video_idx=0)
    assert (found.tiles, found.height, found.width) == (8, 56, 56)
    assert text.count("<image>") == found.tokens == 8
    assert words_of(text, special) == found.length


def test_the_words_of_internvls_frames() -> None:
    from transformers.models.internvl.processing_internvl import InternVLProcessor

    special = ("<img>", "<IMG_CONTEXT>", "</img>")
    words: Any = object.__new__(InternVLProcessor)
    words.start_image_token, words.image_token, words.end_image_token = special
    words.image_seq_length = 4
    for frames in (3, 12):
        found = made("internvl", 640, 480, frames)
        pixels = {"pixel_values_videos": torch.zeros(1, frames, 3, 56, 56)}
        text = words.replace_video_token(pixels, video_idx=0)
        assert text.count("<IMG_CONTEXT>") == found.tokens and found.tiles == frames
        assert words_of(text, special) == found.length


def test_every_row_has_its_arithmetic_checked() -> None:
    assert {*QWENS, "qwen3_vl_moe", "smolvlm", "internvl"} == set(VIDEOS)


def test_videos_are_read() -> None:
    assert read_sizes(("2@640x480x16", "10x20", "64x48x30s")) == [
        *[Seen(640, 480, frames=16)] * 2,
        Seen(10, 20),
        Seen(64, 48, seconds=30),
    ]
    assert str(Seen(64, 48, seconds=30)) == "64x48x30s"


def test_frames_are_scaled_and_dropped_before_the_processor() -> None:
    """LLaMA-Factory's video_max_pixels and video_maxlen."""
    said = {"images": ("1@1280x720x40",), "video_scaled_to": 256 * 256, "video_frames": 16}
    (scaled,) = pictures_of(CONFIGS["qwen2_5_vl"], resolve(said))
    (whole,) = pictures_of(CONFIGS["qwen2_5_vl"], resolve({"images": said["images"]}))
    assert (scaled.frames, whole.frames) == (16, 40)
    assert scaled.height * scaled.width <= 256 * 256 + 28 * 28 * 40 < whole.height * whole.width


@pytest.mark.parametrize(
    ("name", "written", "said"),
    [
        ("gemma3", "1@64x64x4", "no rule for videos of a 'gemma3' model"),
        ("qwen2_5_vl", "1@64x64x30s", "--set video_fps=2"),
        ("qwen3_vl", "1@64x64x1", "less than 2 frames"),
        ("qwen2_5_vl", "1@64x64x0", "expected N@WxH"),
        ("qwen2_5_vl", "1@64x64x4s4", "expected N@WxH"),
        ("smolvlm", "1@64x64x4,1@64x64", "as one tensor"),
        ("smolvlm", "1@64x64x4,1@64x64x5", "as one tensor"),
    ],
)
def test_a_video_that_cannot_be_read_is_refused(name: str, written: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        pictures_of(CONFIGS[name], resolve({"images": written}))
