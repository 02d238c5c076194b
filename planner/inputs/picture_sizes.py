"""A picture as a model's processor makes it, and the numbers of a config.json that decide it.

The arithmetic is in planner/inputs/picture_arithmetic.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from memplan.planner.tables.errors import UsageError, nearest, shown
from memplan.planner.tables.pictures import PARTS, PICTURES, PictureRule

MAX_IMAGE_SIZE = 4096  # transformers 5.24 models/idefics3/image_processing_idefics3.py


@dataclass(frozen=True, slots=True)
class Picture:
    """What a processor makes of one picture or video: `tokens` that the tower's output replaces, `markers`
    around them, and `tiles` of `height` x `width` pixels (of a model of patches: one tile, the picture as
    resized).
    """

    tokens: int
    markers: int
    tiles: int
    height: int
    width: int
    original: tuple[int, int]  # height, width
    frames: int = 0  # of a video; 0: a picture
    grid: int = 1  # patches one behind the other in time, of a model of patches
    parts: int = 1  # runs of tokens with markers between them

    @property
    def length(self) -> int:
        """Tokens that the picture adds to its row."""
        return self.tokens + self.markers


class Limits(NamedTuple):
    """What a setup changes of a processor's sizes; None: as it is published."""

    least: int | None = None
    most: int | None = None
    tiles: int | None = None
    scaled_to: int | None = None


UNLIMITED = Limits()


def has_tower(config: Mapping[str, Any]) -> bool:
    """Whether a config.json says that the model has a vision or audio part beside its language model."""
    return any(config.get(key) for key in PARTS) or str(config.get("model_type")) in PICTURES


def rule_of(config: Mapping[str, Any]) -> PictureRule:
    """The model type's row. UsageError for a model that takes no pictures, or whose processor has none."""
    kind = str(config.get("model_type"))
    part = config.get("vision_config")
    if kind == "llava" and isinstance(part, Mapping) and part.get("model_type") == "pixtral":
        kind = "llava+pixtral"
    rule = PICTURES.get(kind)
    if rule is not None:
        return rule
    if not has_tower(config):
        raise UsageError(
            f"images: a model of type '{kind}' takes no pictures: leave --images out, or give the "
            "vision-language model's own config.json"
        )
    close = nearest(kind, PICTURES)
    like = f"; nearest: {', '.join(close)}" if close else ""
    raise UsageError(
        f"images: memplan has no rule for the processor of '{kind}' (it has {', '.join(PICTURES)}{like}): "
        "leave --images out for the language part, a lower bound"
    )


def scaled(height: int, width: int, pixels: int) -> tuple[int, int]:
    """Height and width of a picture, one of more than `pixels` made smaller before the processor sees it
    (LLaMA-Factory 0.9.5 data/mm_plugin.py _preprocess_image).
    """
    if width * height <= pixels:
        return height, width
    factor = math.sqrt(pixels / (width * height))
    return max(1, int(height * factor)), max(1, int(width * factor))


class Sizes:
    """Numbers of a config.json that the arithmetic needs. UsageError where one is missing."""

    def __init__(self, config: Mapping[str, Any], rule: PictureRule) -> None:
        self.config, self.rule = config, rule
        part = config.get("vision_config")
        self.vision: Mapping[str, Any] = part if isinstance(part, Mapping) else {}

    def vision_number(self, key: str, default: int | None = None) -> int:
        """A whole number of vision_config."""
        return self._whole(f"vision_config.{key}", self.vision.get(key, self._usual("vision", key, default)))

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number of the config itself."""
        return self._whole(key, self.config.get(key, self._usual("", key, default)))

    def _usual(self, part: str, key: str, default: int | None) -> int | None:
        return DEFAULTS.get(self.rule.model_type, {}).get(f"{part}.{key}" if part else key, default)

    def _whole(self, key: str, value: Any) -> int:
        if isinstance(value, (list, tuple)) and len(set(value)) == 1:
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"config.json: {key} is {shown(value)}, expected a whole number above 0")
        return value

    @property
    def side(self) -> int:
        """Pixels of a square's edge."""
        return self.rule.side or self.vision_number("image_size")

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Width and height that vision_config.image_size says, in the file or as its class has it; None where
        the class has no such number.
        """
        value = self.vision.get("image_size", self._usual("vision", "image_size", None))
        if isinstance(value, (list, tuple)) and len(value) == 2:
            return self._whole("vision_config.image_size", value[0]), self._whole("image_size", value[1])
        return None if value is None else (self._whole("vision_config.image_size", value),) * 2

    @property
    def features(self) -> int:
        """Tokens of one square of a tower with square patches, its first (class) token left out."""
        return (self.side // self.vision_number("patch_size")) ** 2


DEFAULTS: dict[str, dict[str, int]] = {
    "qwen2_vl": {"vision.patch_size": 14, "vision.spatial_merge_size": 2},
    "qwen2_5_vl": {"vision.patch_size": 14, "vision.spatial_merge_size": 2},
    "qwen3_vl": {"vision.patch_size": 16, "vision.spatial_merge_size": 2},
    "qwen3_vl_moe": {"vision.patch_size": 16, "vision.spatial_merge_size": 2},
    **{
        name: {"vision.patch_size": 16, "vision.spatial_merge_size": 2}
        for name in ("qwen3_5", "qwen3_5_moe", "cohere_compass")
    },
    "paddleocr_vl": {"vision.image_size": 384, "vision.patch_size": 14, "vision.spatial_merge_size": 2},
    "glm46v": {"vision.image_size": 336, "vision.patch_size": 14, "vision.spatial_merge_size": 2},
    "mistral3": {"vision.image_size": 1540, "vision.patch_size": 14, "spatial_merge_size": 2},
    "llava+pixtral": {"vision.image_size": 1024, "vision.patch_size": 16},
    "gemma4": {"vision.patch_size": 16, "vision.pooling_kernel_size": 3},
    "mllama": {"vision.image_size": 448, "vision.max_num_tiles": 4},
    "gemma3": {"vision.image_size": 896, "mm_tokens_per_image": 256},
    "llava": {"vision.image_size": 336, "vision.patch_size": 14},
    "llava_next": {"vision.image_size": 336, "vision.patch_size": 14},
    "idefics3": {"vision.image_size": 364, "vision.patch_size": 14, "scale_factor": 2},
    "smolvlm": {"vision.image_size": 384, "vision.patch_size": 14, "scale_factor": 2},
    "internvl": {"vision.image_size": 448, "vision.patch_size": 14},
    "llama4": {"vision.image_size": 336, "vision.patch_size": 14},
}
"""What published config.json files leave to their class (transformers 5.24 models/*/configuration_*.py), but
for image sizes, which are the checkpoints'."""


def smart_resize(
    height: int, width: int, factor: int, least: int, most: int, frames: tuple[int, int] = (1, 1)
) -> tuple[int, int]:
    """Height and width as multiples of `factor` with `least` to `most` pixels (transformers 5.24
    models/qwen2_vl/image_processing_qwen2_vl.py), over all `frames`, as they are and as they are counted.
    UsageError where the processor refuses the picture.
    """
    count, counted = frames
    if max(height, width) / min(height, width) > 200:
        raise UsageError(
            f"images {width}x{height}: the processor refuses an aspect ratio above 200: crop the picture"
        )
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    if counted * high * wide > most:
        beta = math.sqrt((count * height * width) / most)
        high = max(factor, math.floor(height / beta / factor) * factor)
        wide = max(factor, math.floor(width / beta / factor) * factor)
    elif counted * high * wide < least:
        beta = math.sqrt(least / (count * height * width))
        high, wide = math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
    return high, wide
