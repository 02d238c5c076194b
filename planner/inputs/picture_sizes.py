"""What a model's processor makes of one picture: tokens of the sequence and shapes of pixel values, by the
processor's own arithmetic on a picture's width and height.

PICTURES (planner/tables/pictures.py) says which arithmetic a model type has, and where it was read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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


def picture(config: Mapping[str, Any], width: int, height: int, limits: Limits = UNLIMITED) -> Picture:
    """What the processor of a config's model makes of one picture. Raises UsageError."""
    rule = rule_of(config)
    original = (height, width)
    if limits.scaled_to is not None:
        height, width = scaled(height, width, limits.scaled_to)
    return ARITHMETIC[rule.arithmetic](rule, Sizes(config, rule), height, width, limits, original)


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


def _patches(
    rule: PictureRule, at: Sizes, height: int, width: int, limits: Limits, original: tuple[int, int]
) -> Picture:
    merged = at.vision_number("spatial_merge_size")
    patch = at.vision_number("patch_size")
    high, wide = smart_resize(
        height, width, patch * merged, limits.least or rule.least, limits.most or rule.most
    )
    tokens = (high // patch) * (wide // patch) // merged**2
    return Picture(tokens, rule.markers, 1, high, wide, original)


def _fixed(
    rule: PictureRule, at: Sizes, height: int, width: int, limits: Limits, original: tuple[int, int]
) -> Picture:
    if rule.model_type == "gemma3":
        tokens = at.number("mm_tokens_per_image")
    else:
        tokens = at.features + (at.config.get("vision_feature_select_strategy") == "full")
    return Picture(tokens, rule.markers, 1, at.side, at.side, original)


_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


def _anyres(
    rule: PictureRule, at: Sizes, height: int, width: int, limits: Limits, original: tuple[int, int]
) -> Picture:
    """An overview, and the tiles of the listed size that keeps most of the picture, of which padding is cut
    away and a token is added to each row.
    """
    sizes = at.config.get("image_grid_pinpoints") or _PINPOINTS
    side, patches = at.side, at.side // at.vision_number("patch_size")
    best = _best_resolution(height, width, sizes)
    rows, columns = patches * (best[0] // side), patches * (best[1] // side)
    if width / height > columns / rows:
        kept = int(round(height * (columns / width), 7))
        rows -= (rows - kept) // 2 * 2
    else:
        kept = int(round(width * (rows / height), 7))
        columns -= (columns - kept) // 2 * 2
    tokens = rows * columns + rows + patches**2
    tiles = 1 + math.ceil(best[0] / side) * math.ceil(best[1] / side)
    return Picture(tokens, rule.markers, tiles, side, side, (height, width))


def _best_resolution(height: int, width: int, sizes: Any) -> tuple[int, int]:
    """transformers 5.24 image_processing_utils.py select_best_resolution: the most of the picture's pixels,
    then the fewest left empty.
    """

    def keeps(size: Any) -> tuple[int, int]:
        scale = min(size[1] / width, size[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - size[0] * size[1]

    found = max(sizes, key=keeps)
    return int(found[0]), int(found[1])


def _splits(
    rule: PictureRule, at: Sizes, height: int, width: int, limits: Limits, original: tuple[int, int]
) -> Picture:
    side = at.side
    longest = min(rule.most * side, MAX_IMAGE_SIZE)
    per_tile = at.features // at.number("scale_factor") ** 2
    rows, columns = (0, 0) if limits.tiles == 1 else _grid(height, width, longest, side)
    if limits.tiles not in (None, 1):
        raise UsageError(
            f"image_tiles {limits.tiles}: the processor of '{rule.model_type}' splits by the longest edge: "
            "use 1 (no splitting), or leave it out"
        )
    tiles = rows * columns + 1
    markers = 3 + rows * (2 * columns + 1)
    return Picture(per_tile * tiles, markers, tiles, side, side, original)


def _grid(height: int, width: int, longest: int, side: int) -> tuple[int, int]:
    """Rows and columns of squares, none where the picture is one (transformers 5.24
    models/idefics3/image_processing_idefics3.py resize, resize_for_vision_encoder, split_images).
    """
    wide, ratio = width >= height, width / height
    if wide:
        width, height = longest, int(longest / ratio)
        height += height % 2
    else:
        height, width = longest, int(longest * ratio)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    ratio = width / height
    if wide:
        width = math.ceil(width / side) * side
        height = int(width / ratio)
    else:
        height = math.ceil(height / side) * side
        width = int(height * ratio)
    rows, columns = math.ceil(height / side), math.ceil(width / side)
    return (rows, columns) if max(rows, columns) > 1 else (0, 0)


def _tiles(
    rule: PictureRule, at: Sizes, height: int, width: int, limits: Limits, original: tuple[int, int]
) -> Picture:
    """The grid whose aspect ratio is nearest; of equals the larger while the picture has half its pixels."""
    side, most = at.side, limits.tiles or rule.most
    grids = sorted(
        ((w, h) for w in range(1, most + 1) for h in range(1, most // w + 1)),
        key=lambda grid: grid[0] * grid[1],
    )
    best, apart = (1, 1), math.inf
    for grid in grids:
        difference = abs(width / height - grid[0] / grid[1])
        larger = difference == apart and width * height > 0.5 * side**2 * grid[0] * grid[1]
        if difference < apart or larger:
            best, apart = grid, difference
    tiles = best[0] * best[1]
    tiles += tiles > 1  # the overview
    ratio = at.config.get("downsample_ratio", 0.5)
    return Picture(int(at.features * ratio**2) * tiles, rule.markers, tiles, side, side, original)


def _chunks(
    rule: PictureRule, at: Sizes, height: int, width: int, limits: Limits, original: tuple[int, int]
) -> Picture:
    """The smallest canvas of squares that a picture is not made smaller for, else the one that shrinks it
    least.
    """
    side, most = at.side, limits.tiles or rule.most
    canvases = [(h, w) for h in range(1, most + 1) for w in range(1, most // h + 1)]

    def scale(canvas: tuple[int, int]) -> float:
        return min(canvas[1] * side / width, canvas[0] * side / height)

    larger = [scale(each) for each in canvases if scale(each) >= 1]
    chosen = min(larger) if larger else max(map(scale, canvases))
    rows, columns = min((c for c in canvases if scale(c) == chosen), key=lambda c: c[0] * c[1])
    tiles = rows * columns
    tiles += tiles > 1
    ratio = at.vision.get("pixel_shuffle_ratio", 0.5)
    markers = 3 + (rows * columns if tiles > 1 else 0)
    return Picture(int(at.features * ratio**2) * tiles, markers, tiles, side, side, original)


ARITHMETIC: dict[str, Callable[[PictureRule, Sizes, int, int, Limits, tuple[int, int]], Picture]] = {
    "patches": _patches,
    "fixed": _fixed,
    "anyres": _anyres,
    "splits": _splits,
    "tiles": _tiles,
    "chunks": _chunks,
}
