"""A vision-language model under transformers' Trainer, its pictures by its own image processor (torchvision).

    towers.py FOLDER METHOD BATCH TOKENS CHECKPOINTS WIDTH HEIGHT

FOLDER has a config.json; METHOD: full, or lora on every linear layer.
"""

import json
import sys
from importlib import import_module

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

folder, method = sys.argv[1:3]
batch, tokens, checkpoints, width, height = map(int, sys.argv[3:8])
with open(f"{folder}/config.json", encoding="utf-8") as file:
    config = json.load(file)
kind, vision = config["model_type"], config["vision_config"]
merged = vision.get("patch_size", 1) * config.get("spatial_merge_size", 1)
square = {"height": vision.get("image_size"), "width": vision.get("image_size")}
PROCESSORS = {
    "cohere_compass": ("cohere_compass", "CohereCompass", {"patch_size": vision.get("patch_size")}),
    "glm46v": ("glm46v", "Glm46V", {}),
    "paddleocr_vl": ("paddleocr_vl", "PaddleOCRVL", {}),
    "gemma4": ("gemma4", "Gemma4", {}),
    "mllama": ("mllama", "Mllama", {"size": square, "max_image_tiles": vision.get("max_num_tiles")}),
    "mistral3": (
        "pixtral",
        "Pixtral",
        {
            "size": {"longest_edge": vision.get("image_size")},
            "patch_size": {"height": merged, "width": merged},
        },
    ),
}
module, name, sizes = PROCESSORS[kind]
module = import_module(f"transformers.models.{module}.image_processing_{module}")
processor = getattr(module, f"{name}ImageProcessor")(**sizes)
picture = Image.new("RGB", (width, height))
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="bfloat16", device_map="auto")
place = model.config.image_token_id


def collate(rows):
    """Rows of text that begin with a picture, as the model's processor makes them."""
    count = len(rows)
    made = dict(
        processor([[picture]] * count if kind == "mllama" else [picture] * count, return_tensors="pt")
    )
    shown = [0] * count
    if "image_grid_thw" in made:
        shown = [int(grid.prod()) // 4 for grid in made["image_grid_thw"]]
    elif kind == "mistral3":
        shown = [(int(high) // merged) * (int(wide) // merged) for high, wide in made["image_sizes"]]
    elif kind == "gemma4":
        shown = [int(each) for each in made.pop("num_soft_tokens_per_image")]
    ids = torch.full((count, tokens), 3)
    for row, each in zip(ids, shown, strict=True):
        row[4 : 4 + each] = place
    made = {key: value for key, value in made.items() if isinstance(value, torch.Tensor)}
    if kind == "mllama":
        made.pop("num_tiles", None)
        made["cross_attention_mask"] = torch.ones(
            count, tokens, 1, sizes["max_image_tiles"], dtype=torch.int64
        )
    elif kind != "mistral3":
        made["mm_token_type_ids"] = (ids == place).long()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **made, "labels": ids.clone()}


if method == "lora":
    model = get_peft_model(
        model,
        LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="out",
        per_device_train_batch_size=batch,
        max_steps=3,
        report_to=[],
        save_strategy="no",
        activation_checkpointing=bool(checkpoints),
        bf16=True,
        remove_unused_columns=False,
    ),
    train_dataset=[{"image": 0}] * 64,
    data_collator=collate,
).train()
