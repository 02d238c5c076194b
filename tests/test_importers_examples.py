"""One training file after the other: the settings that move memory arrive, and every key is accounted for."""

import json
from pathlib import Path

import pytest
import yaml

from memplan.planner.importers.files import FORMATS, read_training_file
from memplan.planner.inputs.setup import resolve

DATA = Path(__file__).parent / "data" / "importers"
EXAMPLES = sorted(path for path in DATA.rglob("*") if path.is_file())

EXPECTED = {
    "setup_qlora.yaml": (
        "llama-3.1-8b",
        {"method": "qlora", "rank": 8, "sequence_length": 1024, "recipe": "hf"},
    ),
    "setup_full.json": (
        "gpt2",
        {"method": "full", "recipe": "raw", "micro_batch": 4, "targets": ("c_attn",)},
    ),
    "prediction.json": ("gpt2", {"method": "lora", "rank": 4, "micro_batch": 2}),
    "swift_lora.yaml": (
        "Qwen/Qwen3-8B",
        {
            "recipe": "hf",
            "method": "lora",
            "rank": 16,
            "alpha": 64,
            "dropout": 0.05,
            "targets": ("all-linear",),
            "micro_batch": 2,
            "sequence_length": 4096,
            "weight_dtype": "bfloat16",
            "checkpointing": "reentrant",
        },
    ),
    "swift_full.yaml": (
        "Qwen/Qwen2.5-0.5B",
        {"method": "full", "micro_batch": 1, "sequence_length": 2048, "attention": "flash_attention_2"},
    ),
    "swift_qlora.yaml": (
        "meta-llama/Llama-3.1-8B",
        {
            "method": "qlora",
            "quant_type": "nf4",
            "compute_dtype": "bfloat16",
            "rank": 8,
            "alpha": 32,
            "targets": ("q_proj", "v_proj"),
            "sequence_length": 1024,
        },
    ),
    "unsloth_qlora.yaml": (
        "unsloth/Qwen3-8B",
        {
            "method": "qlora",
            "rank": 32,
            "alpha": 32,
            "micro_batch": 1,
            "sequence_length": 4096,
            "gradient_accumulation": 8,
            "optimizer": "adamw_bnb_8bit",
        },
    ),
    "unsloth_lora.yaml": (
        "meta-llama/Llama-3.1-8B",
        {"method": "lora", "rank": 64, "targets": ("q_proj", "v_proj"), "checkpointing": "none"},
    ),
    "unsloth_full.yaml": (
        "Qwen/Qwen2.5-0.5B",
        {"method": "full", "micro_batch": 2, "sequence_length": 1024, "checkpointing": "non_reentrant"},
    ),
    "axolotl_qlora.yaml": (
        "meta-llama/Llama-3.1-8B",
        {
            "recipe": "axolotl",
            "method": "qlora",
            "quant_type": "nf4",
            "double_quant": True,
            "quant_storage": "bfloat16",
            "rank": 32,
            "alpha": 16,
            "dropout": 0.05,
            "targets": ("all-linear",),
            "micro_batch": 2,
            "sequence_length": 4096,
            "packed_documents": 2,
            "gradient_accumulation": 4,
            "optimizer": "paged_adamw_8bit",
            "checkpointing": "non_reentrant",
            "attention": "flash_attention_2",
            "allocator": "expandable",
            "kbit_prepare": False,
        },
    ),
    "axolotl_full.yaml": (
        "Qwen/Qwen2.5-0.5B",
        {
            "method": "full",
            "micro_batch": 4,
            "sequence_length": 2048,
            "loss": "fused",
            "attention": "sdpa",
            "weight_dtype": "bfloat16",
            "upcast_modules": "norms_and_embeddings",
        },
    ),
    "axolotl_fsdp_lora.yaml": (
        "meta-llama/Llama-3.1-70B",
        {
            "method": "lora",
            "quant_type": "int8",
            "parallel": "fsdp",
            "gpus": 8,
            "targets": ("q_proj", "k_proj", "v_proj", "o_proj"),
            "sequence_length": 1024,
            "optimizer": "adamw_torch",
        },
    ),
    "llamafactory_v1_lora.yaml": (
        "Qwen/Qwen2.5-0.5B",
        {
            "recipe": "raw",
            "method": "lora",
            "rank": 16,
            "alpha": 32,
            "targets": ("all-linear",),
            "micro_batch": 2,
            "sequence_length": 4096,
            "parallel": "fsdp",
            "checkpointing": "non_reentrant",
            "optimizer": "adamw_torch",
            "autocast": "none",
            "weight_dtype": "bfloat16",
        },
    ),
    "llamafactory_v1_qlora.yaml": (
        "meta-llama/Llama-3.1-8B",
        {
            "method": "qlora",
            "quant_type": "nf4",
            "double_quant": True,
            "compute_dtype": "bfloat16",
            "quant_storage": "bfloat16",
            "rank": 64,
            "targets": ("q_proj", "v_proj"),
            "kbit_prepare": False,
            "packed_documents": 2,
            "attention": "flash_attention_2",
            "sequence_length": 2048,
            "dropout": 0.05,
        },
    ),
    "llamafactory_v1_full.yaml": (
        "Qwen/Qwen2.5-0.5B",
        {
            "method": "full",
            "weight_dtype": "float32",
            "parallel": "zero2",
            "micro_batch": 4,
            "optimizer": "adamw_torch",
        },
    ),
    "llamafactory_lora.yaml": (
        "meta-llama/Meta-Llama-3-8B-Instruct",
        {
            "recipe": "llamafactory",
            "method": "lora",
            "rank": 8,
            "alpha": 16,
            "micro_batch": 1,
            "gradient_accumulation": 8,
            "sequence_length": 2048,
            "checkpointing": "reentrant",
            "autocast": "bfloat16",
            "trainable_dtype": "float32",
        },
    ),
    "llamafactory_qlora.yaml": (
        "Qwen/Qwen2.5-7B",
        {
            "method": "qlora",
            "quant_type": "nf4",
            "double_quant": True,
            "rank": 64,
            "targets": ("q_proj", "v_proj"),
            "upcast_modules": "norms",
            "attention": "flash_attention_2",
            "sequence_length": 8192,
            "micro_batch": 2,
            "packed_documents": 2,
            "optimizer": "paged_adamw_8bit",
        },
    ),
    "llamafactory_full_ds.yaml": (
        "mistralai/Mistral-7B-v0.1",
        {
            "method": "full",
            "trainable_dtype": "weight",
            "autocast": "none",
            "parallel": "zero3",
            "checkpointing": "non_reentrant",
            "loss": "fused",
            "sequence_length": 4096,
        },
    ),
    "trl_sft.yaml": (
        "Qwen/Qwen2.5-0.5B",
        {
            "recipe": "trl",
            "method": "full",
            "weight_dtype": "bfloat16",
            "sequence_length": 1024,
            "micro_batch": 2,
            "packed_documents": 2,
            "loss": "chunked",
            "attention": "flash_attention_2",
            "checkpointing": "non_reentrant",
        },
    ),
    "trl_lora.yaml": (
        "meta-llama/Llama-3.2-1B",
        {
            "method": "lora",
            "weight_dtype": "float32",
            "rank": 32,
            "alpha": 16,
            "dropout": 0.05,
            "sequence_length": 2048,
            "micro_batch": 4,
        },
    ),
    "trl_qlora.yaml": (
        "meta-llama/Llama-3.1-8B",
        {
            "method": "qlora",
            "double_quant": True,
            "compute_dtype": "bfloat16",
            "adapter_dtype": "bfloat16",
            "targets": ("peft-default",),
            "modules_to_save": ("lm_head",),
            "optimizer": "paged_adamw_32bit",
            "kbit_prepare": False,
        },
    ),
    "hf_bf16.json": (
        None,
        {"recipe": "hf", "micro_batch": 4, "autocast": "bfloat16", "checkpointing": "non_reentrant"},
    ),
    "hf_fsdp.json": (
        None,
        {"optimizer": "adafactor", "parallel": "fsdp", "checkpointing": "non_reentrant", "micro_batch": 2},
    ),
    "hf_fp16.json": (
        None,
        {
            "autocast": "float16",
            "optimizer": "adamw_bnb_8bit",
            "checkpointing": "reentrant",
            "checkpoint_every": 2,
            "micro_batch": 8,
        },
    ),
    "torchtune_qlora.yaml": (
        "llama-3.1-8b",
        {
            "recipe": "raw",
            "method": "qlora",
            "adapter_dtype": "bfloat16",
            "autocast": "none",
            "optimizer": "adamw_torch_fused",
            "rank": 8,
            "targets": ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            "sequence_length": 4096,
            "kbit_prepare": False,
        },
    ),
    "torchtune_full.yaml": (
        "llama-2-7b",
        {"method": "full", "optimizer": "paged_adamw_32bit", "packed_documents": 2},
    ),
    "torchtune_lora.yaml": (
        "mistral-7b",
        {
            "method": "lora",
            "weight_dtype": "float32",
            "rank": 64,
            "checkpointing": "none",
            "attention": "sdpa-efficient",
        },
    ),
    "lora/adapter_config.json": (
        "meta-llama/Llama-2-7b-hf",
        {"method": "rslora", "rank": 64, "alpha": 16, "targets": ("q_proj", "v_proj")},
    ),
    "adalora/adapter_config.json": (
        "huggyllama/llama-7b",
        {"method": "adalora", "init_rank": 12, "target_rank": 4},
    ),
    "ia3/adapter_config.json": ("bigscience/bloom-560m", {"method": "ia3"}),
    "accelerate_fsdp2.yaml": (None, {"parallel": "fsdp", "gpus": 8, "autocast": "bfloat16"}),
    "accelerate_zero3.yaml": (None, {"parallel": "zero3", "gpus": 4}),
    "accelerate_ddp.yaml": (None, {"parallel": "ddp", "gpus": 2, "autocast": "float16"}),
    "ds_z3_config.json": (None, {"parallel": "zero3"}),
    "deepspeed_zero2.json": (None, {"parallel": "zero2", "micro_batch": 4, "autocast": "bfloat16"}),
    "deepspeed_zero1.json": (None, {"parallel": "zero1", "autocast": "float16"}),
    "snippet_qlora.py": (
        "mistralai/Mistral-7B-v0.1",
        {
            "recipe": "raw",
            "method": "qlora",
            "quant_type": "nf4",
            "double_quant": False,
            "compute_dtype": "bfloat16",
            "kbit_prepare": True,
            "checkpointing": "non_reentrant",
            "rank": 8,
            "alpha": 16,
            "optimizer": "adamw_torch_fused",
        },
    ),
    "snippet_trainer.py": (
        "Qwen/Qwen2.5-1.5B",
        {
            "recipe": "trl",
            "method": "lora",
            "weight_dtype": "bfloat16",
            "checkpointing": "none",
            "targets": ("all-linear",),
            "micro_batch": 2,
            "sequence_length": 2048,
        },
    ),
    "snippet_markdown.md": (
        "HuggingFaceTB/SmolLM2-360M",
        {"recipe": "hf", "method": "full", "optimizer": "adafactor", "micro_batch": 4},
    ),
}


def test_every_example_is_in_the_table_and_every_format_has_three():
    assert {str(path.relative_to(DATA)) for path in EXAMPLES} == set(EXPECTED)
    formats = [read_training_file(path).format for path in EXAMPLES]
    assert all(formats.count(name) >= 3 for name in (*FORMATS, "python")), formats


@pytest.mark.parametrize("name", EXPECTED)
def test_example(name):
    model, expected = EXPECTED[name]
    imported = read_training_file(DATA / name)
    assert imported.model == model
    assert [report.key for report in imported.by_status("unknown")] == []
    setup = resolve(imported=imported.fields)
    assert {key: getattr(setup, key) for key in expected} == expected
    json.dumps(imported.to_document())


@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if path.suffix in (".yaml", ".json")], ids=lambda path: path.name
)
def test_every_key_of_an_example_is_reported_once(path):
    imported = read_training_file(path)
    document = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
    reported = [report.key.split(".")[0] for report in imported.keys]
    document = document.get(
        "setup", document
    )  # of a prediction, its setup: a later version's fields are the reader's to drop
    assert set(document) - {"a_field_of_a_later_version"} <= set(reported)
