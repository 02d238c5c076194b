"""The keyword arguments of the calls that a snippet is read for: BitsAndBytesConfig, from_pretrained and
PEFT's configurations.
"""

from __future__ import annotations

from typing import Any

from memplan.planner.importers import peft
from memplan.planner.importers.rules import DTYPES, Rule, ignored, integer, not_modelled, use
from memplan.planner.tables.errors import UsageError, shown


def _dtype(key: str, value: Any) -> str | None:
    if str(value) not in DTYPES:
        raise UsageError(f"{key} is {shown(value)}: expected a torch dtype")
    return DTYPES[str(value)]


QUANTIZATION: dict[str, Rule] = {
    "load_in_4bit": use("_four_bit", lambda key, value: bool(value)),
    "load_in_8bit": use("_eight_bit", lambda key, value: bool(value)),
    "bnb_4bit_quant_type": use("quant_type"),
    "bnb_4bit_use_double_quant": use("double_quant", lambda key, value: bool(value)),
    "bnb_4bit_compute_dtype": use("compute_dtype", _dtype),
    "bnb_4bit_quant_storage": use("quant_storage", lambda key, value: str(value).removeprefix("torch.")),
    "llm_int8_threshold": Rule("ignored", why="which columns go in 16 bits depends on the data"),
    "llm_int8_has_fp16_weight": not_modelled("a 16-bit copy beside the 8-bit weight"),
    "llm_int8_enable_fp32_cpu_offload": not_modelled("layers on the CPU"),
    "llm_int8_skip_modules": not_modelled("layers left unquantized", ([],)),
}
PRETRAINED: dict[str, Rule] = {
    "quantization_config": Rule("ignored", why="read where it is made"),
    "dtype": use("weight_dtype", _dtype),
    "torch_dtype": use("weight_dtype", _dtype),
    "attn_implementation": use("attention"),
    "load_in_4bit": use("_four_bit", lambda key, value: bool(value)),
    "load_in_8bit": use("_eight_bit", lambda key, value: bool(value)),
    "device_map": Rule("ignored", why="one GPU is assumed"),
    "max_seq_length": use("_length", integer),
    "num_labels": use("_labels", integer),
    "load_in_16bit": use("_sixteen_bit", lambda key, value: bool(value)),
    "full_finetuning": not_modelled("every parameter is trained, in Unsloth's own way"),
    "fast_inference": not_modelled("a generation engine beside the trainer", errs="low"),
    "use_cache": Rule("ignored", why="checkpointing turns the cache off, and a loss needs none"),
    "max_memory": not_modelled("layers on the CPU or on other GPUs"),
    "offload_folder": not_modelled("layers on disk"),
    "gguf_file": not_modelled("weights of another format"),
    **ignored(
        "where the model comes from",
        """
        trust_remote_code revision token use_auth_token cache_dir low_cpu_mem_usage use_safetensors local_files_only config
        pretrained_model_name_or_path force_download subfolder variant padding_side use_fast add_eos_token model_max_length legacy
        offload_state_dict model_name max_lora_rank gpu_memory_utilization random_state
    """,
    ),
}
ADAPTER: dict[str, Rule] = {
    **peft.LORA,
    "task_type": Rule("ignored", why="the head of the model"),
    **ignored(
        "Unsloth's own: a seed, and the length that the model was loaded with", "random_state max_seq_length"
    ),
}
OPTIMIZERS = {
    "AdamW": "adamw_torch",
    "Adam": "adamw_torch",
    "SGD": "sgd",
    "RMSprop": "rmsprop",
    "Adagrad": "adagrad",
    "Adafactor": "adafactor",
    "AdamW8bit": "adamw_bnb_8bit",
    "Adam8bit": "adamw_bnb_8bit",
    "PagedAdamW8bit": "paged_adamw_8bit",
    "PagedAdamW32bit": "paged_adamw_32bit",
    "PagedAdamW": "paged_adamw_32bit",
    "Lion8bit": "lion_8bit",
    "AdamWScheduleFree": "schedule_free_adamw",
}
"""The classes of torch.optim and bitsandbytes.optim, and the optimizers that they are."""
PREFERENCES = (
    *("SFT", "DPO", "KTO", "GRPO", "ORPO", "CPO", "RLOO", "Reward", "PRM", "GKD", "OnlineDPO", "BCO"),
    *("Distillation", "PPO"),
)
"""The first words of TRL's trainers and their arguments."""
TRAINERS = ("Trainer", "Seq2SeqTrainer", "SentenceTransformerTrainer")
ARGUMENTS = ("TrainingArguments", "Seq2SeqTrainingArguments", "SentenceTransformerTrainingArguments")
"""The trainers that are transformers' own or made of it, and the classes of their arguments."""
