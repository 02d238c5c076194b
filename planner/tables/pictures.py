"""PICTURES: how each vision-language model's processor turns a picture into tokens and pixel values, and
which of its modules read them.

Adding a model type whose processor is one of `ARITHMETIC`'s is adding a row here. Sizes are those of the
published checkpoints' preprocessor_config.json; where config.json has the number itself, the arithmetic
(planner/inputs/pictures.py) reads it there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Arithmetic = Literal["patches", "rows", "pooled", "fixed", "anyres", "splits", "tiles", "chunks", "crossed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRule:
    """One model type's processor and modules."""

    model_type: str
    arithmetic: Arithmetic
    """patches: resized to a multiple of the patches that are merged, each its own token (Qwen-VL); rows: the
    longest edge bounded, a marker at the end of each row of tokens (Pixtral); pooled: patches up to a budget,
    padded to it (Gemma 4); crossed: tiles that the language model's own cross-attention reads, no token but
    one (Llama 3.2 Vision); fixed: one
    square of fixed tokens; anyres: an overview and the tiles of the best of a list of sizes (LLaVA-NeXT);
    splits: the longest edge scaled, then squares and an overview (Idefics 3); tiles: the grid of squares next
    to the aspect ratio and an overview (InternVL); chunks: the canvas that the picture fits best (Llama 4).
    """
    source: str
    side: int = 0
    """Pixels of a square's edge; 0: vision_config.image_size says it."""
    least: int = 0
    most: int = 0
    """patches: bounds of a picture's pixels. splits: `most` squares along the longest edge. tiles, chunks: `most` squares
    at most.
    """
    markers: int = 0
    """Tokens that the processor or the chat template puts around a picture."""
    kinds: str = ""
    """The batch's tensor (B, S) that says which tokens are pictures; empty: there is none."""
    flat: bool = True
    """patches: whether the pixels of a patch are one dimension, or channels and a square."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the pixel values."""
    tower: tuple[str, ...] = ("vision_tower",)
    """Parts of the dotted names of the vision tower's modules."""
    projector: tuple[str, ...] = ("multi_modal_projector",)
    """Those of the projector, which may lie inside the tower."""


def _table(*rows: PictureRule) -> dict[str, PictureRule]:
    return {row.model_type: row for row in rows}


_QWEN = "transformers 5.24 models/qwen2_vl/image_processing_qwen2_vl.py smart_resize"
_SPLITS = "transformers 5.24 models/{0}/image_processing_{0}.py get_number_of_image_patches"
_TILES = "transformers 5.24 models/got_ocr2/image_processing_got_ocr2.py get_optimal_tiled_canvas"
_ANYRES = "transformers 5.24 models/llava_next/processing_llava_next.py _get_number_of_features"

PICTURES: dict[str, PictureRule] = _table(
    *(
        PictureRule(
            model_type=name,
            arithmetic="patches",
            source=f"{_QWEN}; Qwen/{published} preprocessor_config.json",
            least=least,
            most=most,
            markers=2,
            kinds="mm_token_type_ids",
            tower=("visual",),
            projector=("visual.merger", "deepstack_merger_list"),
        )
        for name, published, least, most in (
            ("qwen2_vl", "Qwen2-VL-7B-Instruct", 56 * 56, 16384 * 28 * 28),
            ("qwen2_5_vl", "Qwen2.5-VL-7B-Instruct", 56 * 56, 16384 * 28 * 28),
            ("qwen3_vl", "Qwen3-VL-8B-Instruct", 256 * 256, 4096 * 4096),
            ("qwen3_vl_moe", "Qwen3-VL-30B-A3B-Instruct", 256 * 256, 4096 * 4096),
        )
    ),
    *(
        PictureRule(
            model_type=name,
            arithmetic="patches",
            source=f"{_QWEN}, which its Qwen3VLProcessor has; the bounds of Qwen/Qwen3-VL-8B-Instruct",
            least=256 * 256,
            most=4096 * 4096,
            markers=2,
            kinds="mm_token_type_ids",
            tower=("visual",),
            projector=("visual.merger",),
        )
        for name in ("qwen3_5", "qwen3_5_moe")
    ),
    PictureRule(
        model_type="cohere_compass",
        arithmetic="patches",
        source="transformers 5.24 models/cohere_compass/image_processing_cohere_compass.py smart_resize and the "
        "bounds of its class",
        least=56 * 56,
        most=28 * 28 * 1280,
        markers=2,
        kinds="mm_token_type_ids",
        tower=("visual",),
        projector=("visual.merger", "deepstack_merger_list"),
    ),
    PictureRule(
        model_type="paddleocr_vl",
        arithmetic="patches",
        source="transformers 5.24 models/paddleocr_vl/image_processing_paddleocr_vl.py smart_resize and the "
        "bounds of its class",
        least=384 * 384,
        most=1536 * 1536,
        markers=2,
        kinds="mm_token_type_ids",
        flat=False,
        tower=("visual",),
        projector=("projector",),
    ),
    PictureRule(
        model_type="glm46v",
        arithmetic="patches",
        source="transformers 5.24 models/glm46v/image_processing_glm46v.py smart_resize, whose bounds count a "
        "picture as two frames, and the bounds of its class",
        least=112 * 112 // 2,
        most=28 * 28 * 15000 // 2,
        markers=2,
        kinds="mm_token_type_ids",
        tower=("visual",),
        projector=("visual.merger",),
    ),
    *(
        PictureRule(
            model_type=name,
            arithmetic="rows",
            source="transformers 5.24 models/pixtral/image_processing_pixtral.py get_resize_output_image_size, "
            "processing_pixtral.py; the longest edge is vision_config.image_size",
        )
        for name in ("mistral3", "llava+pixtral")
    ),
    PictureRule(
        model_type="gemma4",
        arithmetic="pooled",
        source="transformers 5.24 models/gemma4/image_processing_gemma4.py get_aspect_ratio_preserving_size, "
        "max_soft_tokens of its class",
        most=280,
        markers=2,
        kinds="mm_token_type_ids",
        projector=("embed_vision",),
    ),
    PictureRule(
        model_type="mllama",
        arithmetic="crossed",
        source="transformers 5.24 models/mllama/image_processing_mllama.py: padded to vision_config.max_num_tiles",
        markers=1,
        tower=("vision_model",),
    ),
    PictureRule(
        model_type="gemma3",
        arithmetic="fixed",
        source="transformers 5.24 models/gemma3/processing_gemma3.py Gemma3Processor full_image_sequence: "
        "mm_tokens_per_image (256) to a picture, without pan and scan",
        markers=4,
        kinds="token_type_ids",
    ),
    PictureRule(
        model_type="llava",
        arithmetic="fixed",
        source="transformers 5.24 models/llava/processing_llava.py _get_num_multimodal_tokens",
    ),
    PictureRule(model_type="llava_next", arithmetic="anyres", source=_ANYRES),
    *(
        PictureRule(
            model_type=name,
            arithmetic="splits",
            source=f"{_SPLITS.format(name)}; {published} preprocessor_config.json",
            most=4,
            tower=("vision_model",),
            projector=("connector",),
        )
        for name, published in (
            ("idefics3", "HuggingFaceM4/Idefics3-8B-Llama3"),
            ("smolvlm", "HuggingFaceTB/SmolVLM2-2.2B-Instruct"),
        )
    ),
    PictureRule(
        model_type="internvl",
        arithmetic="tiles",
        source=f"{_TILES}; OpenGVLab/InternVL3-8B-hf preprocessor_config.json (crop_to_patches is on for "
        "pictures)",
        most=12,
        markers=2,
    ),
    PictureRule(
        model_type="llama4",
        arithmetic="chunks",
        source="transformers 5.24 models/llama4/image_processing_llama4.py get_best_fit, processing_llama4.py "
        "_prompt_split_image",
        most=16,
        dtype="bfloat16",
        tower=("vision_model",),
    ),
)

PARTS = ("vision_config", "audio_config", "vision_tower_config", "mm_vision_tower", "visual")
"""Keys of a config.json that say that a model has a part beside its language model."""

USUAL, USUAL_VIDEO = "1@1024x1024", "1@640x480x16"
"""The picture and the video of which an answer tells the tokens where nobody said a size."""
USUAL_WORD = "usual"
"""What `images` says where a run trains on pictures of unknown size."""

RESIZED = {
    "axolotl": "axolotl 0.19 loaders/utils.py takes image_size from vision_config, processing_strategies.py "
    "pads each picture to that square",
}
"""Recipes that make pictures alike before the processor sees them, and where that was read."""

WITHOUT_SIZES = (
    "pictures: the vision tower, what it saves, and the tokens that pictures become",
    "the vision tower trains",
)
"""What a training file's keys of pictures move, and what is counted once a setup says their sizes."""

WITH_PICTURES = ("sft", "classify", "dpo", "dpo_logits", "kto", "grpo", "rloo")
"""Tasks whose trainers' own collators take pictures and videos beside the text (trl 1.16 trainer/sft_trainer.py
DataCollatorForVisionLanguageModeling, dpo_trainer.py DataCollatorForVisionPreference, kto_trainer.py
DataCollatorForVisionUnpairedPreference, grpo_trainer.py and rloo_trainer.py _tokenize_prompts; LLaMA-Factory
0.9.5 data/collator.py PairwiseDataCollatorWithPadding; transformers 5.24 models/gemma3/modeling_gemma3.py
Gemma3ForSequenceClassification).
"""

_TEXT_ALONE = "whose trainer's collator takes text alone (trl 1.16 {})"
WITHOUT = {
    "reward": _TEXT_ALONE.format("trainer/reward_trainer.py DataCollatorForPreference"),
    "orpo": _TEXT_ALONE.format("experimental/orpo/orpo_trainer.py DPODataCollatorWithPadding"),
    "cpo": _TEXT_ALONE.format("experimental/cpo/cpo_trainer.py DPODataCollatorWithPadding"),
    "prm": "whose trainer takes rows of text alone (trl 1.0 experimental/prm/prm_trainer.py)",
    "mlm": "whose models read text",
    "seq2seq": "whose models read text or sounds",
}
"""Why a task has no pictures."""
