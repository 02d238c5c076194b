"""The pictures in a batch: placeholder tokens among the input ids, and the tensors that a model's processor
makes for its tower, in the processor's shapes and dtypes (transformers 5.24 models/*/processing_*.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from memplan.planner.inputs.picture_sizes import Picture, rule_of
from memplan.planner.inputs.pictures import pictures_of
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.errors import UsageError

CHANNELS = 3
TEXT_TOKEN = 3
"""Any token that is no picture's."""


def ids(config: Any, setup: Setup, rows: int, device: torch.device) -> torch.Tensor:
    """rows x S int64 on the device: each row begins with its pictures, one marker before and after each, and
    goes on with text. Their values are known also where the device is meta.
    """
    kinds = torch.tensor(_kinds(config, setup))
    row = torch.where(kinds == 1, _token(config), TEXT_TOKEN)
    return row.repeat(rows, 1).to(device)


def tensors(config: Any, setup: Setup, rows: int, device: torch.device) -> dict[str, torch.Tensor]:
    """What the processor adds to input ids and mask for `rows` examples of a setup's pictures; nothing where
    it has none.
    """
    document = config.to_dict()
    pictures = pictures_of(document, setup)
    if not pictures:
        return {}
    rule = rule_of(document)
    found: dict[str, torch.Tensor] = {}
    if rule.kinds:
        kinds = torch.tensor(_kinds(config, setup)).repeat(rows, 1)
        found[rule.kinds] = kinds.to(device)
    dtype = getattr(torch, rule.dtype)
    made = _MAKERS[rule.arithmetic](document, pictures, rows)
    for name, (shape, values) in made.items():
        if values is None:
            found[name] = torch.rand(shape, dtype=dtype, device=device)
        else:
            found[name] = values.to(device)
    return found


def _kinds(config: Any, setup: Setup) -> list[int]:
    """0 for each token of text, 1 for each of a picture's, of one row."""
    row: list[int] = []
    for each in pictures_of(config.to_dict(), setup):
        before = (each.markers + 1) // 2
        row += [0] * before + [1] * each.tokens + [0] * (each.markers - before)
    if len(row) > setup.sequence_length:
        raise UsageError(
            f"sequence_length {setup.sequence_length}: the pictures are {len(row)} tokens of it: use --seq "
            f"{len(row)} or more"
        )
    return row + [0] * (setup.sequence_length - len(row))


def _token(config: Any) -> int:
    """The placeholder's id in a config."""
    for name in ("image_token_id", "image_token_index"):
        found = getattr(config, name, None)
        if isinstance(found, int):
            return found
    raise UsageError(f"images: this {config.model_type} config has no image_token_id")


Made = Mapping[str, tuple[tuple[int, ...], torch.Tensor | None]]
"""Name -> shape, and the values where they decide shapes; None: any pixel."""


def _patches(document: Mapping[str, Any], pictures: Sequence[Picture], rows: int) -> Made:
    """Each patch of every picture a row of its pixels, and the grid of each."""
    vision = document["vision_config"]
    patch, frames = vision["patch_size"], vision["temporal_patch_size"]
    grids = [(1, each.height // patch, each.width // patch) for each in pictures]
    count = rows * sum(high * wide for _, high, wide in grids)
    return {
        "pixel_values": ((count, CHANNELS * frames * patch * patch), None),
        "image_grid_thw": ((rows * len(grids), 3), torch.tensor(grids).repeat(rows, 1)),
    }


def _squares(document: Mapping[str, Any], pictures: Sequence[Picture], rows: int) -> Made:
    """Every square of every picture, one after the other."""
    first, tiles = pictures[0], sum(each.tiles for each in pictures)
    return {"pixel_values": ((rows * tiles, CHANNELS, first.height, first.width), None)}


def _padded_tiles(document: Mapping[str, Any], pictures: Sequence[Picture], rows: int) -> Made:
    """Pictures with as many tiles as the one that has most, and the sizes that they had."""
    first, most = pictures[0], max(each.tiles for each in pictures)
    sizes = torch.tensor([each.original for each in pictures]).repeat(rows, 1)
    return {
        "pixel_values": ((rows * len(pictures), most, CHANNELS, first.height, first.width), None),
        "image_sizes": ((rows * len(pictures), 2), sizes),
    }


def _by_row(document: Mapping[str, Any], pictures: Sequence[Picture], rows: int) -> Made:
    """The squares of a row's pictures, and a mask of the pixels that are real."""
    first, tiles = pictures[0], sum(each.tiles for each in pictures)
    shape = (rows, tiles, first.height, first.width)
    return {
        "pixel_values": ((rows, tiles, CHANNELS, first.height, first.width), None),
        "pixel_attention_mask": (shape, torch.ones(shape, dtype=torch.int64)),
    }


_MAKERS: dict[str, Callable[[Mapping[str, Any], Sequence[Picture], int], Made]] = {
    "patches": _patches,
    "fixed": _squares,
    "anyres": _padded_tiles,
    "splits": _by_row,
    "tiles": _squares,
    "chunks": _squares,
}
