"""What a model's processor makes of one picture: tokens of the sequence and shapes of pixel values, by the
processor's own arithmetic on a picture's width and height.

PICTURES (planner/tables/pictures.py) says which arithmetic a model type has, and where it was read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from memplan.planner.inputs.picture_sizes import (
    MAX_IMAGE_SIZE,
    UNLIMITED,
    Limits,
    Picture,
    Sizes,
    rule_of,
    scaled,
    smart_resize,
)
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.pictures import PictureRule


def picture(config: Mapping[str, Any], width: int, height: int, limits: Limits = UNLIMITED) -> Picture:
    """What the processor of a config's model makes of one picture. Raises UsageError."""
    rule = rule_of(config)
    original = (height, width)
    if limits.scaled_to is not None:
        height, width = scaled(height, width, limits.scaled_to)
    return ARITHMETIC[rule.arithmetic](rule, Sizes(config, rule), height, width, limits, original)


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


def _rows(
    rule: PictureRule, at: Sizes, height: int, width: int, limits: Limits, original: tuple[int, int]
) -> Picture:
    """The longest edge bounded, then up to whole merged patches; a token ends each row."""
    longest = at.side
    patch = at.vision_number("patch_size") * at.number("spatial_merge_size", 1)
    ratio = max(height / longest, width / longest)
    if ratio > 1:
        height, width = math.floor(height / ratio), math.floor(width / ratio)
    rows, columns = (height - 1) // patch + 1, (width - 1) // patch + 1
    high, wide = rows * patch, columns * patch
    return Picture(rows * columns, rows, 1, high, wide, (high, wide), parts=rows)


def _pooled(
    rule: PictureRule, at: Sizes, height: int, width: int, limits: Limits, original: tuple[int, int]
) -> Picture:
    """The largest size of whole pooling windows within the budget of patches that keeps the aspect ratio; its
    patches are padded to the budget.
    """
    patch, pooled = at.vision_number("patch_size"), at.vision_number("pooling_kernel_size")
    side, budget = patch * pooled, rule.most * pooled**2
    scale = math.sqrt(budget * patch**2 / (height * width))
    rows, columns = math.floor(scale * height / side), math.floor(scale * width / side)
    if rows == columns == 0:
        raise UsageError(f"images {width}x{height}: the processor makes no patch of it: use a larger picture")
    if rows == 0:
        rows, columns = 1, min(width // height, rule.most)
    elif columns == 0:
        rows, columns = min(height // width, rule.most), 1
    return Picture(rows * columns, rule.markers, budget, rows * side, columns * side, original)


def _crossed(
    rule: PictureRule, at: Sizes, height: int, width: int, limits: Limits, original: tuple[int, int]
) -> Picture:
    return Picture(0, rule.markers, at.vision_number("max_num_tiles"), at.side, at.side, original)


ARITHMETIC: dict[str, Callable[[PictureRule, Sizes, int, int, Limits, tuple[int, int]], Picture]] = {
    "patches": _patches,
    "fixed": _fixed,
    "anyres": _anyres,
    "splits": _splits,
    "tiles": _tiles,
    "chunks": _chunks,
    "rows": _rows,
    "pooled": _pooled,
    "crossed": _crossed,
}
