"""Training scripts of videos, and of TRL's trainers of preferences and of sampled completions with pictures,
for benchmarks/tasks_dryrun.py: the models' own processors around a tokenizer of four words.

Processors that read videos need torchvision, SmolVLM's also num2words: CUDA_PYTHON has both.
"""

from __future__ import annotations

HEAD = """
import sys
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
folder, method = sys.argv[1:3]
batch, tokens, checkpoints, width, height, frames, *sampled = (
    int(word) for word in sys.argv[3:] if "=" not in word)
common = dict(
    output_dir="out", per_device_train_batch_size=batch, max_steps=3, report_to=[], save_strategy="no",
    gradient_checkpointing=bool(checkpoints), bf16=True)
adapter = LoraConfig(
    r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
adapters = None if method == "full" else adapter
picture = Image.new("RGB", (width, height))
def tokenizer_of(ids, **special):
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3} | ids
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=special)
"""

QWEN = """
special = dict(
    image_token="<|image_pad|>", video_token="<|video_pad|>", vision_start_token="<|vision_start|>",
    vision_end_token="<|vision_end|>")
tokenizer = tokenizer_of(
    {"<|image_pad|>": 151655, "<|video_pad|>": 151656, "<|vision_start|>": 151652, "<|vision_end|>": 151653},
    **special)
START, END = "<|vision_start|>", "<|vision_end|>"
SHOWN, MOVING = START + "<|image_pad|>" + END, START + "<|video_pad|>" + END
"""
PROCESSORS = {
    "qwen2.5-vl-3b": QWEN
    + """
from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor
bounds = dict(min_pixels=56 * 56, max_pixels=16384 * 28 * 28)
processor = Qwen2_5_VLProcessor(
    Qwen2VLImageProcessor(**bounds), tokenizer, Qwen2VLVideoProcessor(**bounds))
""",
    "qwen3-vl-2b": QWEN
    + """
from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor
processor = Qwen3VLProcessor(
    Qwen2VLImageProcessor(patch_size=16, size={"shortest_edge": 65536, "longest_edge": 16777216}), tokenizer,
    Qwen3VLVideoProcessor(size={"shortest_edge": 4096, "longest_edge": 25165824}))
""",
    "smolvlm-500m": """
from transformers import SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor
tokenizer = tokenizer_of(
    {"<image>": 49190, "<fake_token_around_image>": 49189, "<global-img>": 49152}, image_token="<image>",
    fake_image_token="<fake_token_around_image>", global_image_token="<global-img>")
sizes = dict(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512})
processor = SmolVLMProcessor(
    SmolVLMImageProcessor(**sizes), tokenizer,
    SmolVLMVideoProcessor(size={"longest_edge": 512}, max_image_size={"longest_edge": 512}), image_seq_len=64)
SHOWN, MOVING = "<image>", "<video>"
""",
    "gemma-3-4b-it": """
from transformers import Gemma3ImageProcessor, Gemma3Processor
tokenizer = tokenizer_of(
    {"<image_soft_token>": 262144, "<start_of_image>": 255999, "<end_of_image>": 256000},
    image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
processor = Gemma3Processor(Gemma3ImageProcessor(size={"height": 896, "width": 896}), tokenizer)
SHOWN = "<start_of_image>"
""",
}
"""Model -> its processor, as published, and the words that stand for a picture and for a video."""

VIDEOS = """
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments
from transformers.video_utils import VideoMetadata
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="bfloat16", device_map="auto")
if method == "frozen":
    TOWER.requires_grad_(False)
elif method != "full":
    model = get_peft_model(model, adapter)
clip = torch.zeros(frames, 3, height, width, dtype=torch.uint8)
seen = VideoMetadata(total_num_frames=frames, fps=2, duration=frames / 2, frames_indices=list(range(frames)))
def read(text, rows):
    return processor(
        text=[text] * rows, videos=[[clip]] * rows, video_metadata=[[seen]] * rows, do_sample_frames=False,
        return_tensors="pt")
around = read(MOVING, 1)["input_ids"].shape[1]
def collate(rows):
    made = read(MOVING + " a" * (tokens - around), len(rows))
    made = {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}
    return {**made, "labels": made["input_ids"].clone()}
Trainer(
    model=model, args=TrainingArguments(**common, remove_unused_columns=False),
    train_dataset=[{"video": clip}] * 64, data_collator=collate).train()
"""

PREFERENCES = """
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
around = processor(images=[[picture]], text=[SHOWN], return_tensors="pt")["input_ids"].shape[1]
text = " a" * (tokens - around)
row = {"prompt": SHOWN, "images": [picture]}
rows = [row | {"chosen": text, "rejected": text}] * 16
if NAME == "KTO":
    rows = [row | {"completion": text, "label": bool(number % 2)} for number in range(16)]
globals()[NAME + "Trainer"](
    model=folder, args=globals()[NAME + "Config"](
        **common, max_length=None, model_init_kwargs={"dtype": "bfloat16"}),
    train_dataset=Dataset.from_list(rows), processing_class=processor, peft_config=adapters).train()
"""

SAMPLED = """
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
completion, accumulation = sampled
tokenizer.padding_side = "left"
processor.chat_template = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    + SHOWN + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}")
around = processor(images=[[picture]], text=[SHOWN], return_tensors="pt")["input_ids"].shape[1]
prompt = [{"role": "user", "content": " a" * (tokens - completion - around)}]
def lengths(completions, **kwargs):
    return [float(len(each)) for each in completions]
globals()[NAME + "Trainer"](
    model=folder, reward_funcs=lengths, processing_class=processor, peft_config=adapters,
    args=globals()[NAME + "Config"](
        **common, gradient_accumulation_steps=accumulation, num_generations=4, beta=0.04,
        max_completion_length=completion, generation_kwargs={"min_new_tokens": completion},
        model_init_kwargs={"dtype": "bfloat16"}),
    train_dataset=Dataset.from_list([{"prompt": prompt, "images": [picture]}] * 16)).train()
"""

CLASSES = """
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments
model = AutoModelForSequenceClassification.from_pretrained(
    folder, num_labels=5, dtype="bfloat16", device_map="auto")
model.config.get_text_config().pad_token_id = 0
if method != "full":
    adapter.task_type = "SEQ_CLS"
    model = get_peft_model(model, adapter)
around = processor(images=[[picture]], text=[SHOWN], return_tensors="pt")["input_ids"].shape[1]
def collate(rows):
    text = [SHOWN + " a" * (tokens - around)] * len(rows)
    made = dict(processor(images=[[picture]] * len(rows), text=text, return_tensors="pt"))
    return {**made, "labels": torch.ones(len(rows), dtype=torch.int64)}
Trainer(
    model=model, args=TrainingArguments(**common, remove_unused_columns=False),
    train_dataset=[{"image": picture}] * 64, data_collator=collate).train()
"""

_OF_TASK = {
    "classify": CLASSES,
    "sft": VIDEOS,
    "dpo": PREFERENCES.replace("NAME", "'DPO'"),
    "kto": PREFERENCES.replace("NAME", "'KTO'"),
    "grpo": SAMPLED.replace("NAME", "'GRPO'"),
    "rloo": SAMPLED.replace("NAME", "'RLOO'"),
}
_TOWERS = {"smolvlm-500m": "model.model.vision_model"}


def script(task: str, model: str) -> str:
    """The script of a task on a model, which takes folder, method, micro-batch, tokens, checkpoints, width,
    height and frames (0: a picture), then completion tokens and micro-batches of a task that samples.
    """
    text = _OF_TASK[task].replace("TOWER", _TOWERS.get(model, "model.model.visual"))
    return HEAD + PROCESSORS[model] + text


SHOWN = (
    ("sft", "qwen2.5-vl-3b", "lora", 1, 2048, True, (640, 480, 8), ()),
    ("sft", "qwen3-vl-2b", "lora", 2, 2048, True, (640, 480, 8), ()),
    ("sft", "smolvlm-500m", "lora", 2, 2048, True, (640, 480, 8), ()),
    ("sft", "smolvlm-500m", "full", 1, 1024, False, (512, 512, 4), ()),
    ("dpo", "qwen2.5-vl-3b", "lora", 1, 1024, True, (640, 480, 0), ()),
    ("dpo", "smolvlm-500m", "lora", 2, 1536, True, (640, 480, 0), ()),
    ("dpo", "gemma-3-4b-it", "lora", 1, 768, True, (896, 896, 0), ()),
    ("classify", "gemma-3-4b-it", "lora", 2, 512, True, (896, 896, 0), ()),
    ("kto", "qwen3-vl-2b", "lora", 2, 768, True, (448, 448, 0), ()),
    ("grpo", "qwen2.5-vl-3b", "lora", 4, 640, True, (448, 336, 0), (16, 2)),
    ("grpo", "qwen3-vl-2b", "full", 4, 512, True, (320, 320, 0), (16, 1)),
    ("grpo", "smolvlm-500m", "lora", 4, 1536, True, (640, 480, 0), (16, 1)),
    ("grpo", "gemma-3-4b-it", "lora", 4, 512, True, (896, 896, 0), (16, 1)),
    ("rloo", "qwen2.5-vl-3b", "lora", 4, 512, True, (448, 336, 0), (16, 1)),
)
"""Task, model, method, micro-batch, tokens, checkpoints, width x height x frames, completion tokens and
micro-batches."""
