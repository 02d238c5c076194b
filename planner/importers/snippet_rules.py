"""The keyword arguments of the calls that a snippet is read for: BitsAndBytesConfig, from_pretrained and
PEFT's configurations.
"""

from __future__ import annotations

from typing import Any

from memplan.planner.importers import peft
from memplan.planner.importers.rules import DTYPES, Rule, ignored, not_modelled, redacted, use
from memplan.planner.tables.errors import UsageError, shorten


def _dtype(key: str, value: Any) -> str | None:
    if str(value) not in DTYPES:
        raise UsageError(f"{key} is {shorten(redacted(str(value)), 40)}: expected a torch dtype")
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
    "use_cache": Rule("ignored", why="checkpointing turns the cache off, and a loss needs none"),
    "max_memory": not_modelled("layers on the CPU or on other GPUs"),
    "offload_folder": not_modelled("layers on disk"),
    "gguf_file": not_modelled("weights of another format"),
    **ignored(
        "where the model comes from",
        """
        trust_remote_code revision token use_auth_token cache_dir low_cpu_mem_usage use_safetensors local_files_only config
        pretrained_model_name_or_path force_download subfolder variant padding_side use_fast add_eos_token model_max_length legacy
        offload_state_dict num_labels
    """,
    ),
}
ADAPTER: dict[str, Rule] = {**peft.LORA, "task_type": Rule("ignored", why="the head of the model")}
