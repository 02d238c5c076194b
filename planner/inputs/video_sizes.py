"""What a model's processor makes of one video: its frames, their pixels and tokens, by the processor's own
arithmetic on width, height and frames or seconds.

VIDEOS (planner/tables/videos.py) says which arithmetic a model type has, and where it was read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from memplan.planner.inputs.picture_sizes import (
    Limits,
    Picture,
    Sizes,
    rule_of,
    scaled,
    smart_resize,
)
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.pictures import PictureRule
from memplan.planner.tables.videos import VIDEOS, VideoRule

CLOCK_WORDS, NUMBER_WORDS, SECOND_WORDS = 10, 4, 4
"""Tokens of '\\nFrame from 00:00:', of 'Frame: ' and the line's end, of '<. seconds>': words, signs and
single digits (the tokenizers of SmolLM2, Qwen2 and Qwen3), of which the last two have more.
"""


class Seen(NamedTuple):
    """What an example shows: a picture of width x height pixels, or a video of so many frames or seconds."""

    width: int
    height: int
    frames: int = 0
    seconds: int = 0

    @property
    def moves(self) -> bool:
        """Whether it is a video."""
        return bool(self.frames or self.seconds)

    def __str__(self) -> str:
        length = f"x{self.frames}" if self.frames else f"x{self.seconds}s" if self.seconds else ""
        return f"{self.width}x{self.height}{length}"


class FrameLimits(NamedTuple):
    """What a setup changes of how a processor reads videos; None: as it is published."""

    fps: float | None = None
    most: int | None = None
    """Frames that are taken of a video at most."""
    pixels: Limits = Limits()


def video(config: Mapping[str, Any], seen: Seen, limits: FrameLimits = FrameLimits()) -> Picture:  # noqa: B008
    """What the processor of a config's model makes of one video. Raises UsageError."""
    kind = str(config.get("model_type"))
    rule = video_rule_of(config)
    frames = frames_of(rule, seen, limits)
    height, width = seen.height, seen.width
    if limits.pixels.scaled_to is not None:
        height, width = scaled(height, width, limits.pixels.scaled_to)
    made = FRAMES[rule.frames](rule, Sizes(config, rule_of(config)), frames, height, width, limits.pixels)
    if made.tokens < 1:
        raise UsageError(f"images {seen}: the processor of '{kind}' makes no tokens of it: use larger frames")
    seconds = seen.seconds or frames / (limits.fps or rule.fps or 1)
    return replace(made, markers=rule.markers + _words(rule, made.parts, seconds))


def video_rule_of(config: Mapping[str, Any]) -> VideoRule:
    """The model type's row. UsageError for a model that takes no videos, or whose processor has no rule."""
    rule_of(config)  # a model of text has its own sentence
    kind = str(config.get("model_type"))
    rule = VIDEOS.get(kind)
    if rule is None:
        raise UsageError(
            f"images: memplan has no rule for videos of a '{kind}' model (it has {', '.join(VIDEOS)}): give "
            "the frames as pictures where its processor reads them so, as in 8@640x480"
        )
    return rule


def frames_of(rule: VideoRule, seen: Seen, limits: FrameLimits) -> int:
    """Frames that reach the model: those that were said, or those that are taken of the seconds."""
    most = limits.most or rule.longest
    if seen.frames:
        return min(seen.frames, limits.most or seen.frames)
    fps = limits.fps or rule.fps
    if fps is None:
        raise UsageError(
            f"images {seen}: the processor of '{rule.model_type}' takes every frame that it is given, so the "
            "seconds do not say how many: name the frames, as in "
            f"{seen.width}x{seen.height}x16, or --set video_fps=2"
        )
    taken = round(seen.seconds * fps) if rule.rounds else int(seen.seconds * fps)
    taken = min(max(taken, rule.fewest), most)
    return taken // 2 * 2 if rule.pairs else taken


def _words(rule: VideoRule, parts: int, seconds: float) -> int:
    """Tokens of the words before each of a video's parts, and of the two markers around it."""
    if rule.stamp == "clock":
        return parts * (3 + CLOCK_WORDS)
    if rule.stamp == "number":
        return sum(2 + NUMBER_WORDS + len(str(number + 1)) for number in range(parts)) - 1
    if rule.stamp == "seconds":
        step = seconds / parts
        return sum(2 + SECOND_WORDS + len(f"{(n + 0.5) * step:.1f}") - 1 for n in range(parts))
    return 0


def _patches_of(at: Sizes, rule: VideoRule, frames: int, high: int, wide: int) -> Picture:
    """Two frames to a patch, the last of an odd number twice."""
    patch, merged = at.vision_number("patch_size"), at.vision_number("spatial_merge_size")
    deep = at.vision_number("temporal_patch_size", 2)
    grid = -(-frames // deep)
    tokens = grid * (high // patch) * (wide // patch) // merged**2
    parts = grid if rule.stamp else 1
    return Picture(tokens, 0, 1, high, wide, (high, wide), frames=frames, grid=grid, parts=parts)


def _bounded(rule: VideoRule, at: Sizes, frames: int, height: int, width: int, limits: Limits) -> Picture:
    factor = at.vision_number("patch_size") * at.vision_number("spatial_merge_size")
    high, wide = smart_resize(height, width, factor, limits.least or rule.least, limits.most or rule.most)
    return _patches_of(at, rule, frames, high, wide)


def _budget(rule: VideoRule, at: Sizes, frames: int, height: int, width: int, limits: Limits) -> Picture:
    """Bounds of frames times pixels, frames being an even number of them (transformers 5.24
    models/qwen3_vl/video_processing_qwen3_vl.py smart_resize).
    """
    factor = at.vision_number("patch_size") * at.vision_number("spatial_merge_size")
    deep = at.vision_number("temporal_patch_size", 2)
    if frames < deep:
        raise UsageError(
            f"images: the processor of '{rule.model_type}' refuses a video of less than {deep} frames: say "
            "it as a picture"
        )
    high, wide = smart_resize(
        *_at_least(height, width, factor),
        factor,
        limits.least or rule.least,
        limits.most or rule.most,
        frames=(frames, round(frames / deep) * deep),
    )
    return _patches_of(at, rule, frames, high, wide)


def _at_least(height: int, width: int, factor: int) -> tuple[int, int]:
    """A frame with an edge shorter than `factor` made larger, its ratio kept."""
    if height >= factor and width >= factor:
        return height, width
    scale = max(factor / height, factor / width)
    return int(height * scale), int(width * scale)


def _squares(rule: VideoRule, at: Sizes, frames: int, height: int, width: int, limits: Limits) -> Picture:
    pictured: PictureRule = at.rule
    if pictured.arithmetic == "splits":
        each = at.features // at.number("scale_factor") ** 2
    else:
        each = int(at.features * at.config.get("downsample_ratio", 0.5) ** 2)
    side = at.side
    return Picture(each * frames, 0, frames, side, side, (side, side), frames=frames, parts=frames)


FRAMES: dict[str, Callable[[VideoRule, Sizes, int, int, int, Limits], Picture]] = {
    "bounded": _bounded,
    "budget": _budget,
    "squares": _squares,
}
