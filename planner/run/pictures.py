"""The pictures and videos in a batch: placeholder tokens among the input ids, and the tensors that a model's
processor makes for its tower, in the processor's shapes and dtypes (transformers 5.24
models/*/processing_*.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from memplan.planner.inputs.picture_sizes import Picture, rule_of
from memplan.planner.inputs.pictures import length_of, pictures_of, read_sizes
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.tasks import GeneratedRows
from memplan.planner.inputs.video_sizes import video_rule_of
from memplan.planner.tables.errors import UsageError

CHANNELS = 3
TEXT_TOKEN = 3
"""Any token that is no picture's."""


def ids(config: Any, setup: Setup, rows: int, device: torch.device) -> torch.Tensor:
    """rows x S int64 on the device: each row begins with its pictures and videos, markers before and after
    each, and goes on with text. Their values are known also where the device is meta.
    """
    kinds = torch.tensor(_kinds(config, setup))
    row = torch.full_like(kinds, TEXT_TOKEN)
    for kind in kinds.unique().tolist():
        if kind != TEXT:
            row[kinds == kind] = _token(config, kind)
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
    for name, (shape, values) in _made(document, pictures, rows).items():
        if values is None:
            found[name] = torch.rand(shape, dtype=dtype, device=device)
        else:
            found[name] = values.to(device)
    if rule.arithmetic == "crossed":
        tiles = found["aspect_ratio_mask"].shape[1:]
        shape = (rows, setup.sequence_length, *tiles)
        found["cross_attention_mask"] = torch.ones(shape, dtype=torch.int64, device=device)
    return found


def shown(config: Any, setup: Setup) -> int:
    """Tokens of a row before its text."""
    return length_of(config.to_dict(), setup)


def prompts(config: Any, setup: Setup, sizes: GeneratedRows, device: torch.device) -> torch.Tensor:
    """Ids of the prompts of a generation, their pictures first."""
    if not read_sizes(setup.images):
        return torch.randint(0, 100, (sizes.rows, sizes.prompt), device=device)
    return ids(config, setup.with_(sequence_length=sizes.prompt), sizes.rows, device)


def of_prompts(
    config: Any, setup: Setup, sizes: GeneratedRows, device: torch.device
) -> dict[str, torch.Tensor]:
    """What the processor adds to a generation's prompts."""
    return tensors(config, setup.with_(sequence_length=sizes.prompt), sizes.rows, device)


def of_rows(config: Any, setup: Setup, sizes: GeneratedRows, device: torch.device) -> dict[str, torch.Tensor]:
    """The same of prompts and completions: a completion has no pictures."""
    found = of_prompts(config, setup, sizes, device)
    name = rule_of(config.to_dict()).kinds if found else ""
    if name:
        kinds = found[name]
        found[name] = torch.cat([kinds, kinds.new_zeros(sizes.rows, sizes.completion)], dim=1)
    return found


def part(shown: Mapping[str, torch.Tensor], rows: int, first: int, last: int) -> dict[str, torch.Tensor]:
    """What rows `first` to `last` of `rows` rows show: each has equally much."""
    found = {}
    for name, tensor in shown.items():
        each = len(tensor) // rows
        found[name] = tensor[first * each : last * each]
    return found


def never_sampled(config: Any, setup: Setup) -> list[int] | None:
    """Tokens that generate suppresses: a placeholder without its picture (trl 1.16 trainer/grpo_trainer.py
    __init__); None where nothing is shown.
    """
    return [_token(config, PICTURE)] if read_sizes(setup.images) else None


TEXT, PICTURE, VIDEO = 0, 1, 2
"""Kinds of tokens, as transformers 5.24 numbers them in mm_token_type_ids."""


def _kinds(config: Any, setup: Setup) -> list[int]:
    """TEXT, PICTURE or VIDEO for each token of one row."""
    row: list[int] = []
    for each in pictures_of(config.to_dict(), setup):
        kind = VIDEO if each.frames else PICTURE
        before = each.markers // each.parts if each.parts > 1 else (each.markers + 1) // 2
        for _ in range(each.parts):
            row += [TEXT] * before + [kind] * (each.tokens // each.parts)
        row += [TEXT] * (each.markers - each.parts * before)
    if len(row) > setup.sequence_length:
        raise UsageError(
            f"sequence_length {setup.sequence_length}: the pictures are {len(row)} tokens of it: use --seq "
            f"{len(row)} or more"
        )
    return row + [TEXT] * (setup.sequence_length - len(row))


def _token(config: Any, kind: int) -> int:
    """The placeholder's id in a config; frames have that of pictures where there is no other."""
    for name in (*_OF_VIDEOS, *_PLACES) if kind == VIDEO else _PLACES:
        found = getattr(config, name, None)
        if isinstance(found, int):
            return found
    raise UsageError(f"images: this {config.model_type} config has no image_token_id")


_PLACES, _OF_VIDEOS = ("image_token_id", "image_token_index"), ("video_token_id", "video_token_index")


Made = Mapping[str, tuple[tuple[int, ...], torch.Tensor | None]]
"""Name -> shape, and the values where they decide shapes; None: any pixel."""


def _made(document: Mapping[str, Any], pictures: Sequence[Picture], rows: int) -> Made:
    """The tensors of a row's pictures and videos, for all rows."""
    rule, makes = rule_of(document), _MAKERS[rule_of(document).arithmetic]
    still = [each for each in pictures if not each.frames]
    moving = [each for each in pictures if each.frames]
    if rule.arithmetic != "patches":
        return makes(document, pictures, rows)
    found = dict(makes(document, still, rows)) if still else {}
    if moving:
        names = {"pixel_values": "pixel_values_videos", "image_grid_thw": "video_grid_thw"}
        found |= {names[name]: made for name, made in makes(document, moving, rows).items()}
        if video_rule_of(document).timed:
            found["second_per_grid_ts"] = ((rows * len(moving),), torch.ones(rows * len(moving)))
    return found


def _patches(document: Mapping[str, Any], pictures: Sequence[Picture], rows: int) -> Made:
    """Each patch of every picture a row of its pixels, and the grid of each."""
    vision, flat = document["vision_config"], rule_of(document).flat
    patch, frames = vision["patch_size"], vision.get("temporal_patch_size", 1)
    pixels = (CHANNELS * frames * patch * patch,) if flat else (CHANNELS * frames, patch, patch)
    grids = [(each.grid, each.height // patch, each.width // patch) for each in pictures]
    count = rows * sum(deep * high * wide for deep, high, wide in grids)
    return {
        "pixel_values": ((count, *pixels), None),
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


def _sized(document: Mapping[str, Any], pictures: Sequence[Picture], rows: int) -> Made:
    """Pictures padded to the largest, and the sizes that they have."""
    high, wide = (max(edges) for edges in zip(*((p.height, p.width) for p in pictures), strict=True))
    sizes = torch.tensor([each.original for each in pictures]).repeat(rows, 1)
    return {
        "pixel_values": ((rows * len(pictures), CHANNELS, high, wide), None),
        "image_sizes": ((rows * len(pictures), 2), sizes),
    }


def _pooled(document: Mapping[str, Any], pictures: Sequence[Picture], rows: int) -> Made:
    """The patches of each picture, padded to its budget, and where each is: column and row, -1: padding."""
    patch, budget = document["vision_config"]["patch_size"], pictures[0].tiles
    where = torch.full((len(pictures), budget, 2), -1)
    for place, each in zip(where, pictures, strict=True):
        high, wide = each.height // patch, each.width // patch
        grid = torch.meshgrid(torch.arange(wide), torch.arange(high), indexing="xy")
        place[: high * wide] = torch.stack(grid, dim=-1).reshape(-1, 2)
    count = rows * len(pictures)
    return {
        "pixel_values": ((count, budget, CHANNELS * patch * patch), None),
        "image_position_ids": ((count, budget, 2), where.repeat(rows, 1, 1)),
    }


def _crossed(document: Mapping[str, Any], pictures: Sequence[Picture], rows: int) -> Made:
    """Every picture as so many tiles, and which of them are real."""
    first, shown = pictures[0], (rows, len(pictures))
    return {
        "pixel_values": ((*shown, first.tiles, CHANNELS, first.height, first.width), None),
        "aspect_ratio_ids": (shown, torch.ones(shown, dtype=torch.int64)),
        "aspect_ratio_mask": ((*shown, first.tiles), torch.ones((*shown, first.tiles), dtype=torch.int64)),
    }


_MAKERS: dict[str, Callable[[Mapping[str, Any], Sequence[Picture], int], Made]] = {
    "patches": _patches,
    "rows": _sized,
    "pooled": _pooled,
    "crossed": _crossed,
    "fixed": _squares,
    "anyres": _padded_tiles,
    "splits": _by_row,
    "tiles": _squares,
    "chunks": _squares,
}
