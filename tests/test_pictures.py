"""Tokens and pixel values of pictures, against the processors themselves: their own code on pictures of many
sizes, with small preprocessor configs written here.
"""

from __future__ import annotations
import __future__

import ast
import math
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("PIL")

import numpy as np
import torch
import transformers
from PIL import Image

from memplan.planner.inputs.pictures import Limits, Picture, picture, read_sizes
from memplan.planner.inputs.video_sizes import Seen
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.pictures import PICTURES

SIZES = (
    (1024, 768),
    (640, 480),
    (336, 336),
    (100, 100),
    (1920, 1080),
    (31, 517),
    (517, 31),
    (1000, 1001),
    (672, 1344),
    (28, 29),
    (1365, 2048),
    (899, 300),
)
"""Width and height: wide, tall, square, tiny, next to a multiple of a patch and of a square."""

SQUARES = {"image_size": 56, "patch_size": 14}
CONFIGS: dict[str, dict[str, Any]] = {
    **{
        name: {"model_type": name, "vision_config": {"patch_size": 14, "spatial_merge_size": 2}}
        for name in ("qwen2_vl", "qwen2_5_vl")
    },
    "qwen3_vl": {"model_type": "qwen3_vl", "vision_config": {"patch_size": 16, "spatial_merge_size": 2}},
    "gemma3": {"model_type": "gemma3", "mm_tokens_per_image": 16, "vision_config": SQUARES},
    "llava": {"model_type": "llava", "vision_config": SQUARES},
    "llava_next": {
        "model_type": "llava_next",
        "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]],
        "vision_config": SQUARES,
    },
    "idefics3": {"model_type": "idefics3", "scale_factor": 2, "vision_config": SQUARES},
    "smolvlm": {"model_type": "smolvlm", "scale_factor": 4, "vision_config": SQUARES},
    "internvl": {"model_type": "internvl", "downsample_ratio": 0.5, "vision_config": SQUARES},
    "llama4": {"model_type": "llama4", "vision_config": {**SQUARES, "pixel_shuffle_ratio": 0.5}},
    **{
        name: {"model_type": name, "vision_config": {"patch_size": 16, "spatial_merge_size": 2}}
        for name in ("cohere_compass", "qwen3_5", "qwen3_5_moe")
    },
    **{
        name: {"model_type": name, "vision_config": {"patch_size": 14, "spatial_merge_size": 2}}
        for name in ("glm46v", "paddleocr_vl")
    },
    "mistral3": {"model_type": "mistral3", "spatial_merge_size": 2, "vision_config": SQUARES},
    "llava+pixtral": {"model_type": "llava", "vision_config": {**SQUARES, "model_type": "pixtral"}},
    "gemma4": {"model_type": "gemma4", "vision_config": {"patch_size": 16, "pooling_kernel_size": 3}},
    "mllama": {"model_type": "mllama", "vision_config": {**SQUARES, "max_num_tiles": 4}},
}


def image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.zeros((height, width, 3), np.uint8))


def made(name: str, width: int, height: int, limits: Limits | None = None) -> Picture:
    return picture(CONFIGS[name], width, height, limits or Limits())


def source_of(path: str) -> str:
    """One of transformers' modules as it is written."""
    return (Path(transformers.__file__).parent / path).read_text(encoding="utf-8")


def functions_of(path: str, of: str = "") -> dict[str, Any]:
    """The functions of one of transformers' modules, or of a class in it, which asks for torchvision when it
    is imported.
    """
    body = ast.parse(source_of(path)).body
    if of:
        body = next(node.body for node in body if isinstance(node, ast.ClassDef) and node.name == of)
    found = [node for node in body if isinstance(node, ast.FunctionDef) and not (of and node.decorator_list)]
    names: dict[str, Any] = {
        "torch": torch,
        "math": math,
        "lru_cache": lru_cache,
        "defaultdict": defaultdict,
        "SizeDict": Any,
    }
    exec(compile(ast.Module(found, []), path, "exec", flags=__future__.annotations.compiler_flag), names)
    return names


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_patches_of_qwen(name: str, size: tuple[int, int]) -> None:
    """The grid that the processor makes of the published bounds, and one of a smaller bound of pixels."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    rule, patch = PICTURES[name], CONFIGS[name]["vision_config"]["patch_size"]
    for limits in (Limits(), Limits(most=200 * patch * patch)):
        least = min(limits.most or rule.most, rule.least)
        processor = Qwen2VLImageProcessorPil(
            patch_size=patch, min_pixels=least, max_pixels=limits.most or rule.most
        )
        out = processor([image(*size)], return_tensors="pt")
        (_, high, wide) = out["image_grid_thw"][0].tolist()
        found = made(name, *size, Limits(least=least, most=limits.most))
        assert (found.height // patch, found.width // patch) == (high, wide)
        assert found.tokens == high * wide // 4
        assert out["pixel_values"].shape == (high * wide, 3 * 2 * patch * patch)


@pytest.mark.parametrize("size", SIZES[:4])
def test_a_picture_of_gemma_is_always_as_many_tokens(size: tuple[int, int]) -> None:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    out = Gemma3ImageProcessorPil(size={"height": 56, "width": 56})([image(*size)], return_tensors="pt")
    found = made("gemma3", *size)
    assert out["pixel_values"].shape == (1, 3, found.height, found.width) and found.tiles == 1
    assert found.tokens == 16


@pytest.mark.parametrize("size", SIZES)
def test_llavas_overview_and_tiles(size: tuple[int, int]) -> None:
    """LLaVA 1.5 has one square; LLaVA-NeXT its tiles and the tokens that its processor counts."""
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

    square = {"height": 56, "width": 56}
    one = LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size=square)(
        [image(*size)], return_tensors="pt"
    )
    found = made("llava", *size)
    assert one["pixel_values"].shape == (1, 3, found.height, found.width) and found.tokens == 16
    pinpoints = CONFIGS["llava_next"]["image_grid_pinpoints"]
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size=square, image_grid_pinpoints=pinpoints
    )
    several = processor([image(*size)], return_tensors="pt")["pixel_values"]
    counts = object.__new__(LlavaNextProcessor)
    counts.image_processor, counts.patch_size, counts.num_additional_image_tokens = processor, 14, 0
    found = made("llava_next", *size)
    assert several.shape == (1, found.tiles, 3, found.height, found.width)
    assert found.tokens == counts._get_number_of_features(size[1], size[0], 56, 56)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_splits_of_idefics(name: str, size: tuple[int, int]) -> None:
    """Squares of pixels, and the words of the prompt that the processor puts around them."""
    if name == "idefics3":
        from transformers.models.idefics3.image_processing_pil_idefics3 import (
            Idefics3ImageProcessorPil as Processor,
        )
        from transformers.models.idefics3.processing_idefics3 import Idefics3Processor as Words
    else:
        from transformers.models.smolvlm.image_processing_pil_smolvlm import (
            SmolVLMImageProcessorPil as Processor,
        )
        from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor as Words
    words: Any = object.__new__(Words)
    words.fake_image_token, words.image_token, words.end_of_utterance_token = "<fake>", "<image>", "<end>"
    words.global_image_tag = words.global_image_token = "<global-img>"
    words.image_seq_len = 16 // CONFIGS[name]["scale_factor"] ** 2
    for split in (True, False):
        processor = Processor(
            size={"longest_edge": 4 * 56}, max_image_size={"longest_edge": 56}, do_image_splitting=split
        )
        out = processor([[image(*size)]], return_row_col_info=True, return_tensors="pt")
        found = made(name, *size, Limits(tiles=None if split else 1))
        assert out["pixel_values"].shape == (1, found.tiles, 3, found.height, found.width)
        text = words.replace_image_token({"rows": out["rows"], "cols": out["cols"]}, 0)
        assert text.count("<image>") == found.tokens
        each = text.replace("<", " <").replace(">", "> ").replace("\n\n", " ~ ").replace("\n", " ~ ").split()
        assert len(each) == found.length


@pytest.mark.parametrize("size", SIZES)
def test_tiles_of_internvl(size: tuple[int, int]) -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    for most in (12, 6):
        processor = GotOcr2ImageProcessorPil(
            size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=most
        )
        tiles = len(processor([image(*size)], return_tensors="pt")["pixel_values"])
        found = made("internvl", *size, Limits(tiles=most))
        assert (found.tiles, found.tokens) == (tiles, 4 * tiles)


@pytest.mark.parametrize("size", SIZES)
def test_patches_of_other_grids(size: tuple[int, int]) -> None:
    """The grids of their classes' own bounds."""
    from transformers.models.cohere_compass.image_processing_pil_cohere_compass import (
        CohereCompassImageProcessorPil,
    )
    from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
    from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import (
        PaddleOCRVLImageProcessorPil,
    )

    processors = {
        "glm46v": Glm46VImageProcessorPil(),
        "paddleocr_vl": PaddleOCRVLImageProcessorPil(),
        "cohere_compass": CohereCompassImageProcessorPil(patch_size=16),
    }
    for name, processor in processors.items():
        (_, high, wide) = processor([image(*size)], return_tensors="pt")["image_grid_thw"][0].tolist()
        found, patch = made(name, *size), CONFIGS[name]["vision_config"]["patch_size"]
        assert (found.height // patch, found.width // patch) == (high, wide), name
        assert found.tokens == high * wide // 4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["mistral3", "llava+pixtral"])
def test_rows_of_pixtral(name: str, size: tuple[int, int]) -> None:
    """The size that the processor resizes to, and the words that it puts in a picture's place."""
    merged = CONFIGS[name].get("spatial_merge_size", 1)
    words = SimpleNamespace(
        patch_size=14,
        spatial_merge_size=merged,
        image_token="<image>",
        image_break_token="<break>",
        image_end_token="<end>",
    )
    functions = functions_of("models/pixtral/image_processing_pixtral.py")
    functions["get_image_size"] = lambda picture, layout: picture
    resized = functions["get_resize_output_image_size"]((size[1], size[0]), (56, 56), 14 * merged)
    found = made(name, *size)
    assert (found.height, found.width) == resized == found.original
    said = functions_of("models/pixtral/processing_pixtral.py", "PixtralProcessor")["replace_image_token"]
    text = said(words, {"image_sizes": [resized]}, 0)
    assert (text.count("<image>"), text.count("<break>") + text.count("<end>")) == (
        found.tokens,
        found.markers,
    )


@pytest.mark.parametrize("size", SIZES)
def test_budget_of_gemma_4(size: tuple[int, int]) -> None:
    """Tokens, padded patches and their places, as the trace makes them."""
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    from memplan.planner.run.pictures import _pooled

    out, found = Gemma4ImageProcessorPil()([image(*size)], return_tensors="pt"), made("gemma4", *size)
    made_here = _pooled(CONFIGS["gemma4"], [found], 1)
    assert int(out["num_soft_tokens_per_image"][0]) == found.tokens
    assert out["pixel_values"].shape == made_here["pixel_values"][0]
    assert torch.equal(out["image_position_ids"], made_here["image_position_ids"][1])


@pytest.mark.parametrize("size", SIZES[:4])
def test_tiles_of_llama_vision_are_padded(size: tuple[int, int]) -> None:
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    from memplan.planner.run.pictures import _crossed

    processor = MllamaImageProcessorPil(size={"height": 56, "width": 56}, max_image_tiles=4)
    out, found = processor([[image(*size)]], return_tensors="pt"), made("mllama", *size)
    for name, (shape, _) in _crossed(CONFIGS["mllama"], [found], 1).items():
        assert out[name].shape == shape


@pytest.mark.parametrize("size", SIZES)
def test_canvases_of_llama(size: tuple[int, int]) -> None:
    """The canvas by the processor's own choice; its tokens by the processor's own words."""
    from transformers.image_utils import SizeDict
    from transformers.models.llama4.processing_llama4 import Llama4Processor

    functions = functions_of("models/llama4/image_processing_llama4.py")
    squares = SizeDict(height=56, width=56)
    canvases = functions["find_supported_resolutions"](max_num_chunks=16, patch_size=squares)
    chosen = functions["get_best_fit"]((size[1], size[0]), torch.tensor(canvases))
    rows, columns = int(chosen[0]) // 56, int(chosen[1]) // 56
    text = object.__new__(Llama4Processor)._prompt_split_image((rows, columns), 4)
    found = made("llama4", *size)
    assert found.tokens == text.count("<|patch|>") and found.length == text.count("<|")
    assert found.tiles == rows * columns + (rows * columns > 1)


def test_every_row_has_its_arithmetic_checked() -> None:
    """A model type that is added comes with its processor's own code above."""
    assert {*CONFIGS, "qwen3_vl_moe"} == set(PICTURES)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("0@10x10", "expected N@WxH"),
        ("10", "expected N@WxH"),
        ("1@10x0", "expected N@WxH"),
        ("1@10x10x", "expected N@WxH"),
        ("-1@10x10", "expected N@WxH"),
        ("1e3@10x10", "expected N@WxH"),
    ],
)
def test_a_size_that_cannot_be_read_is_refused(written: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_sizes((written,))


def test_sizes_are_read() -> None:
    assert read_sizes(("2@640x480", "10x20")) == [*[Seen(640, 480)] * 2, Seen(10, 20)]
    assert read_sizes(("none",)) == [] and read_sizes(()) == []


def test_a_text_model_takes_no_pictures() -> None:
    with pytest.raises(UsageError, match="type 'llama' takes no pictures"):
        picture({"model_type": "llama"}, 10, 10)


def test_a_processor_without_a_row_is_named() -> None:
    config = {"model_type": "paligemma", "vision_config": {"image_size": 224}}
    with pytest.raises(UsageError, match="no rule for the processor of 'paligemma'"):
        picture(config, 10, 10)


def test_the_processor_refuses_a_ribbon() -> None:
    with pytest.raises(UsageError, match="aspect ratio above 200"):
        made("qwen2_5_vl", 3000, 10)


def test_a_picture_is_scaled_before_the_processor_sees_it() -> None:
    """LLaMA-Factory's image_max_pixels of 768 x 768: 1,024 tokens of a square become 729."""
    whole = made("qwen2_5_vl", 896, 896)
    scaled = made("qwen2_5_vl", 896, 896, Limits(scaled_to=768 * 768))
    assert (whole.tokens, scaled.tokens) == (32 * 32, 27 * 27)
