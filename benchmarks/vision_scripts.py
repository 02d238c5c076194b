"""Training scripts of vision-language models and of Whisper, for benchmarks/tasks_dryrun.py: transformers'
Trainer and TRL's SFTTrainer as their documentation calls them, on pictures that the models' own image
processors read, and their configs as published.

Processors that also need torchvision (those that read videos) are left out: their image processor and a
collator of a few lines stand in their place, as TRL's and transformers' examples of such collators have it.
"""

from __future__ import annotations

from typing import Any

from memplan.planner.tables.pictures import PICTURES, USUAL, WITH_PICTURES, WITHOUT
from memplan.planner.tables.videos import VIDEOS

HEAD = """
import sys
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from PIL import Image
folder, method = sys.argv[1:3]
batch, tokens, checkpoints, width, height = map(int, sys.argv[3:8])
common = dict(
    output_dir="out", per_device_train_batch_size=batch, max_steps=3, report_to=[], save_strategy="no",
    gradient_checkpointing=bool(checkpoints), bf16=True, remove_unused_columns=False)
adapter = LoraConfig(
    r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
picture = Image.new("RGB", (width, height))
"""

_TRAINER = """
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="bfloat16", device_map="auto")
if method == "frozen":
    model.model.TOWER.requires_grad_(False)
elif method != "full":
    model = get_peft_model(model, adapter)
def collate(rows):
    made = dict(processor(PICTURES, return_tensors="pt"))
    made.pop("rows", None), made.pop("cols", None)
    ids = torch.full((len(rows), tokens), 3)
    COUNTS
    for row, count in zip(ids, counts):
        row[4 : 4 + count] = IMAGE
    extra = KINDS
    mask = torch.ones_like(ids)
    return {"input_ids": ids, "attention_mask": mask, **extra, **made, "labels": ids.clone()}
Trainer(
    model=model, args=TrainingArguments(**common), train_dataset=[{"image": picture}] * 64,
    data_collator=collate).train()
"""

_QWEN = """
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
processor = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=16384 * 28 * 28)
IMAGE = 151655
""" + _TRAINER.replace("TOWER", "visual").replace("PICTURES", '[row["image"] for row in rows]').replace(
    "COUNTS", 'counts = (made["image_grid_thw"].prod(1) // 4).tolist()'
).replace("KINDS", '{"mm_token_type_ids": (ids == IMAGE).long()}')

_SMOL = """
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
processor = SmolVLMImageProcessorPil(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512})
IMAGE = 49190
""" + _TRAINER.replace("TOWER", "vision_model").replace(
    "PICTURES", '[[row["image"]] for row in rows]'
).replace("COUNTS", 'counts = [64 * made["pixel_values"].shape[1]] * len(rows)').replace("KINDS", "{}")

_GEMMA = """
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Gemma3Processor, PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from trl import SFTConfig, SFTTrainer
special = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>"}
special["eoi_token"] = "<end_of_image>"
words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3}
words |= {special["image_token"]: 262144, special["boi_token"]: 255999, special["eoi_token"]: 256000}
made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
    extra_special_tokens=special)
processor = Gemma3Processor(Gemma3ImageProcessorPil(size={"height": 896, "width": 896}), tokenizer)
row = {"prompt": "<start_of_image>", "completion": " a" * (tokens - 258), "images": [picture]}
SFTTrainer(
    model=folder, args=SFTConfig(**common, max_length=None, model_init_kwargs={"dtype": "bfloat16"}),
    train_dataset=Dataset.from_list([row] * 8), processing_class=processor,
    peft_config=None if method == "full" else adapter).train()
"""

_WHISPER = """
from transformers import AutoModelForSpeechSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments
model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, dtype="bfloat16", device_map="auto")
if method != "full":
    adapter.task_type = None
    model = get_peft_model(model, adapter)
def collate(rows):
    features = torch.zeros(len(rows), width, height)
    return {"input_features": features, "labels": torch.full((len(rows), tokens), 3)}
Seq2SeqTrainer(
    model=model, args=Seq2SeqTrainingArguments(**common), train_dataset=[{"row": 0}] * 64,
    data_collator=collate).train()
"""
SCRIPTS: dict[str, str] = {
    "qwen2.5-vl-3b": _QWEN,
    "smolvlm-500m": _SMOL,
    "gemma-3-4b-it": _GEMMA,
    "whisper-small": _WHISPER,
    "whisper-large-v3": _WHISPER,
}
"""Model -> its script, which takes folder, method, micro-batch, tokens, checkpoints, and a picture's width
and height (Whisper: mel bins and frames)."""

QWEN: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "sliding_window": 32768,
    "use_sliding_window": False,
    "max_window_layers": 70,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "torch_dtype": "bfloat16",
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
    },
}
SMOL: dict[str, Any] = {
    "architectures": ["SmolVLMForConditionalGeneration"],
    "model_type": "smolvlm",
    "image_token_id": 49190,
    "scale_factor": 4,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 49280,
    "text_config": {
        "model_type": "llama",
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_attention_heads": 15,
        "num_hidden_layers": 32,
        "num_key_value_heads": 5,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rope_theta": 100000,
        "vocab_size": 49280,
        "pad_token_id": 2,
    },
    "vision_config": {
        "model_type": "smolvlm_vision",
        "hidden_size": 768,
        "image_size": 512,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "patch_size": 16,
    },
}
GEMMA: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "image_token_index": 262144,
    "mm_tokens_per_image": 256,
    "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
        "vocab_size": 262208,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
WHISPER: dict[str, Any] = {
    "architectures": ["WhisperForConditionalGeneration"],
    "model_type": "whisper",
    "d_model": 768,
    "encoder_layers": 12,
    "decoder_layers": 12,
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "vocab_size": 51865,
    "decoder_start_token_id": 50258,
    "pad_token_id": 50257,
    "bos_token_id": 50257,
    "eos_token_id": 50257,
    "is_encoder_decoder": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2.5-vl-3b": QWEN,
    "smolvlm-500m": SMOL,
    "gemma-3-4b-it": GEMMA,
    "whisper-small": WHISPER,
    "whisper-large-v3": {
        **WHISPER,
        "d_model": 1280,
        **dict.fromkeys(("encoder_layers", "decoder_layers"), 32),
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 20),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 5120),
        "num_mel_bins": 128,
        "vocab_size": 51866,
        "pad_token_id": 50256,
    },
}
"""Qwen/Qwen2.5-VL-3B-Instruct, HuggingFaceTB/SmolVLM2-500M-Video-Instruct, google/gemma-3-4b-it,
openai/whisper-small and whisper-large-v3."""
OF_TRAINER = ("qwen2.5-vl-3b", "smolvlm-500m", "whisper-small")
"""Models whose script is of transformers' Trainer; of the other's with pictures, TRL's SFTTrainer."""
BESIDE = (
    ("smolvlm-500m", "lora", 2, 2048, True, (640, 480)),
    ("smolvlm-500m", "full", 1, 1408, False, (512, 512)),
    ("whisper-small", "full", 4, 128, False, (80, 3000)),
    ("whisper-small", "lora", 8, 128, True, (80, 3000)),
    ("gemma-3-4b-it", "lora", 1, 1024, True, (896, 896)),
    ("qwen2.5-vl-3b", "lora", 2, 1024, True, (640, 480)),
    ("qwen2.5-vl-3b", "full", 1, 1024, True, (640, 480)),
)
"""Pictures and sounds, with the tower trained or adapted too."""

SECTION = """## Pictures, videos and sounds

`--images 1@1024x768` says the pictures of one example (several sizes with commas; `none`: text alone),
`1@1280x720x16` a video of 16 frames, `1@1280x720x30s` one of 30 seconds. Their tokens, by the arithmetic of
the model's own processor, are part of `--seq`; `--set text_length=N` adds N tokens of text to them instead.
The trace then runs the real class with pixel values of that shape; the formula counts the weights of the
tower and refuses pictures, and plan answers with the trace. Without sizes a model named on the command line
has no verdict of `fits`. A training file that trains on pictures (axolotl's `processor_type`, a limit of
pixels of LLaMA-Factory or ms-swift) is answered for `--images usual`: one picture to an example, of the
size that the recipe makes of every picture (axolotl pads each to `vision_config.image_size`), else {usual}.
The answer says so beside the model and under `--assumptions`; an axolotl file without `processor_type`
trains on text. `--set vision_tower=frozen` and `--set projector=frozen` leave those parts untrained,
adapters in them too (PEFT's `all-linear` reaches into both); `image_max_pixels`, `image_min_pixels`,
`image_tiles` are the processor's limits, `image_scaled_to` pixels before it sees a picture.

| model type | processor | read in |
|---|---|---|
{pictures}

Frames are those that reach the model: `--set video_frames=N` is the most that are taken of a video,
`video_fps` how many of a second where seconds are said. `video_max_pixels` and `video_min_pixels` bound a
frame (`bounded`) or all of a video's frames (`budget`), `video_scaled_to` is as for pictures. The words that
a processor puts before each frame (its time or number) are counted as their signs and digits; of the sentence
that SmolVLM puts before a video, up to 2 tokens may lack.

| model type | frames | taken of a second | read in |
|---|---|---|---|
{videos}

```console
$ memplan qwen2.5-vl-7b --method lora --images 1@1280x720x8 --gpu a100-80gb
```

Pictures go with the tasks {tasks}, as their trainers' own collators take them: both rows of a
pair have the picture, a prompt's is read by the first sampled token, by the scores and by the step.
{without}
The reason for others is told. GRPO's images are in prompts; tools that answer with pictures are not counted.

Whisper is trained with `--task seq2seq`: every sound is 3,000 frames, `--set target_length=N` the tokens of
a transcript. Other processors (Gemma 3n, LLaVA-OneVision, LLaVA-NeXT-Video, LFM2-VL, Muse Glimmer), other
sounds (Voxtral), videos of Gemma 4 and packed pictures have no rule.

Under transformers' Trainer with the models' own processors (tests/dryrun_scripts/towers.py, torch 2.14,
one row and picture of 640x480, an A100), the trace of PaddleOCR-VL (LoRA, 2,048 tokens) is 0.006 % below
what a dry run allocates and 0.08 % above what it reserves, that of Mistral 3 with 12 layers (full, 1,024
tokens) 0.02 % below and 0.26 % above.

### What cuDNN takes

A tower begins with a convolution of patches, and torch leaves convolutions to cuDNN: it asks cuDNN's
heuristics for engines, takes the first one's workspace from the caching allocator, and tries the next where
that is out of memory (ATen/native/cudnn/Conv_v8.cpp, torch 2.11 to 2.14, whose wheels pin cuDNN 9.19 to
9.24). Which engine comes first, and what it wants, is NVIDIA's: the workspace is not counted. Where it can
matter is known:

* **Allocated.** A workspace lives during the call. It is below the peak unless it is larger than the gap
  between what is allocated at the call and the peak, which the answer tells ("the peak is exact unless one
  takes more than ..."). What it may be: cuDNN documents matrix products (with the columns written out or
  not), FFT and Winograd, the last two for strides of one alone. So the reach of a convolution of patches is
  its columns (the input, where kernel and stride are one) and its tensors in another layout, all in single
  precision. A reach below the gap is an answer; one above it makes the answer "at least".
* **Reserved.** What was taken stays cached. The run is replayed again with the whole reach taken and given
  back at every such call; by how much more is reserved then is a margin of the verdict, as the P95 error of
  published runs is: fits only with it, tight between.
* **A GPU of just that size.** An engine whose workspace does not fit is passed over, so that the smallest
  capacity does not grow, as long as one of the engines needs little (cuDNN documents implicit products
  without a workspace).

Depthwise kernels are torch's own, but in float16. Pictures are put into the sequence by a running sum of the
mask, eight bytes for every element of the embeddings while it lasts, which is counted.
"""


def section() -> str:
    """The part of docs/tasks.md about pictures, videos and sounds."""
    pictures = (f"| `{rule.model_type}` | {rule.arithmetic} | {rule.source} |" for rule in PICTURES.values())
    videos = (
        f"| `{rule.model_type}` | {rule.frames} | {rule.fps or 'said'} | {rule.source} |"
        for rule in VIDEOS.values()
    )
    shown = ", ".join(f"`{name}`" for name in WITH_PICTURES)
    without = ", ".join(f"`{name}`" for name in WITHOUT)
    return SECTION.format(
        pictures="\n".join(pictures),
        videos="\n".join(videos),
        tasks=shown,
        usual=USUAL.partition("@")[2],
        without=f"The libraries of {without} have no pictures.",
    )
