"""Launch lines as typed: ranks, sharding, the trainer's words and the files that they name."""

import shlex
from pathlib import Path

import pytest

from memplan.planner.importers.launch import read_launch
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError

DATA = Path(__file__).parent / "data" / "importers"

LINES = [
    (
        "accelerate launch --config_file accelerate_fsdp2.yaml -m axolotl.cli.train axolotl_full.yaml",
        "Qwen/Qwen2.5-0.5B",
        {"recipe": "axolotl", "parallel": "fsdp", "gpus": 8, "micro_batch": 4, "method": "full"},
    ),
    (
        "accelerate launch -m axolotl.cli.train axolotl_qlora.yaml --micro-batch-size 1 --sequence_len=8192",
        "meta-llama/Llama-3.1-8B",
        {"micro_batch": 1, "sequence_length": 8192, "rank": 32, "gpus": 1},
    ),
    (
        "axolotl train axolotl_qlora.yaml",
        "meta-llama/Llama-3.1-8B",
        {"method": "qlora", "allocator": "expandable"},
    ),
    (
        "torchrun --nproc_per_node 4 --nnodes=2 -m axolotl.cli.train axolotl_full.yaml",
        "Qwen/Qwen2.5-0.5B",
        {"gpus": 8, "parallel": "ddp"},
    ),
    (
        "llamafactory-cli train llamafactory_lora.yaml cutoff_len=4096 per_device_train_batch_size=2",
        "meta-llama/Meta-Llama-3-8B-Instruct",
        {"recipe": "llamafactory", "sequence_length": 4096, "micro_batch": 2, "rank": 8},
    ),
    (
        "FORCE_TORCHRUN=1 llamafactory-cli train llamafactory_full_ds.yaml",
        "mistralai/Mistral-7B-v0.1",
        {"parallel": "zero3", "method": "full"},
    ),
    (
        "CUDA_VISIBLE_DEVICES=0,1 llamafactory-cli train llamafactory_lora.yaml",
        "meta-llama/Meta-Llama-3-8B-Instruct",
        {"gpus": 2, "parallel": "ddp", "allocator": "expandable"},
    ),
    (
        "FORCE_TORCHRUN=1 NNODES=2 NPROC_PER_NODE=8 llamafactory-cli train llamafactory_lora.yaml",
        "meta-llama/Meta-Llama-3-8B-Instruct",
        {"gpus": 16, "parallel": "ddp", "allocator": "expandable"},
    ),
    (
        "CUDA_VISIBLE_DEVICES=0,1 NPROC_PER_NODE=4 swift sft --model Qwen/Qwen2.5-7B --train_type lora",
        "Qwen/Qwen2.5-7B",
        {"gpus": 4, "parallel": "ddp", "allocator": "native"},
    ),
    (
        "NPROC_PER_NODE=$GPUS swift sft --model Qwen/Qwen2.5-7B --train_type lora",
        "Qwen/Qwen2.5-7B",
        {"gpus": 1, "parallel": "none"},
    ),
    (
        "trl sft --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name trl-lib/Capybara --use_peft --lora_r "
        "32 --load_in_4bit",
        "Qwen/Qwen2.5-0.5B",
        {"recipe": "trl", "method": "qlora", "rank": 32, "micro_batch": 8, "compute_dtype": "float32"},
    ),
    (
        "trl sft --config trl_lora.yaml --per_device_train_batch_size 1 --no_gradient_checkpointing",
        "meta-llama/Llama-3.2-1B",
        {"method": "lora", "micro_batch": 1, "checkpointing": "none"},
    ),
    (
        "accelerate launch --num_processes 2 --mixed_precision bf16 --use_deepspeed --zero_stage 3 sft.py "
        "--model_name_or_path a/b "
        "--dataset_name c --max_length 512",
        "a/b",
        {"recipe": "trl", "gpus": 2, "parallel": "zero3", "sequence_length": 512},
    ),
    (
        "accelerate launch --num_processes=4 --use_fsdp --fsdp_reshard_after_forward false train.py "
        "--model_name_or_path a/b "
        "--per_device_train_batch_size 2 --bf16 true",
        "a/b",
        {"recipe": "hf", "gpus": 4, "parallel": "fsdp", "reshard_after_forward": False, "micro_batch": 2},
    ),
    (
        "deepspeed --num_gpus 8 train.py --deepspeed ds_z3_config.json --model_name_or_path a/b --bf16 "
        "--per_device_train_batch_size 1",
        "a/b",
        {"gpus": 8, "parallel": "zero3", "autocast": "bfloat16"},
    ),
    (
        "PYTORCH_ALLOC_CONF=expandable_segments:True CUDA_VISIBLE_DEVICES=0 python t.py "
        "--model_name_or_path a/b --fp16 --optim adafactor",
        "a/b",
        {
            "allocator": "expandable",
            "autocast": "float16",
            "optimizer": "adafactor",
            "micro_batch": 8,
            "gpus": 1,
        },
    ),
    (
        "python3.11 -m torch.distributed.run --nproc_per_node=2 run_clm.py --model_name_or_path gpt2 "
        "--output_dir o",
        "gpt2",
        {"gpus": 2, "parallel": "ddp", "autocast": "none"},
    ),
    (
        'torchrun --nproc_per_node 8 train.py --model_name_or_path a/b --bf16 --fsdp "full_shard auto_wrap"',
        "a/b",
        {"recipe": "hf", "method": "full", "gpus": 8, "parallel": "fsdp"},
    ),
    (
        "python train.py --model_name_or_path a/b --output_dir o --lora_r 32 --lora_target_modules q_proj "
        "v_proj",
        "a/b",
        {"recipe": "hf", "method": "lora", "rank": 32, "targets": ("q_proj", "v_proj")},
    ),
    (
        "deepspeed fastchat/train/train_lora.py --model_name_or_path a/b --q_lora True --lora_r 8",
        "a/b",
        {"method": "qlora", "quant_type": "nf4", "rank": 8},
    ),
    (
        "python train.py --model_name_or_path a/b --output_dir o --use_lora false --lora_r 32 --load_in_4bit",
        "a/b",
        {"method": "full", "quant_type": "none"},
    ),
    (
        "env HF_TOKEN=hf_abcdefghijklmnop trl sft --model_name_or_path a/b --dataset_name c",
        "a/b",
        {"method": "full", "weight_dtype": "float32"},
    ),
]


@pytest.mark.parametrize(("line", "model", "expected"), LINES, ids=range(len(LINES)))
def test_launch_line(line, model, expected):
    imported = read_launch(shlex.split(line), DATA)
    setup = resolve(imported=imported.fields)
    assert imported.model == model
    assert {key: getattr(setup, key) for key in expected} == expected
    assert not imported.by_status("unknown")


def test_a_line_without_a_word_of_adapters_says_that_it_is_full_fine_tuning():
    imported = read_launch(
        shlex.split("torchrun --nproc_per_node 8 train.py --model_name_or_path gpt2 --bf16"), DATA
    )
    assert any(note.startswith("full fine-tuning: no adapter flags found") for note in imported.notes)
    imported = read_launch(shlex.split("python train.py --model_name_or_path gpt2 --bf16 --lora_r 8"), DATA)
    assert not imported.notes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no launch line"),
        ("accelerate launch", "names no program"),
        ("accelerate launch --num_processes two train.py --bf16", "--num_processes is 'two'"),
        ("torchrun --nproc_per_node gpu train.py --bf16", "depends on the machine"),
        ("axolotl train nowhere.yaml", "is not a file"),
        ("axolotl train", "passes no options to"),
        ("trl sft --lora_r -", "lora_r is '-'"),
        ("trl sft stray", "is not an option"),
        ("tune run lora_finetune_single_device --config x", "torchtune's command line is not read"),
        ("python train.py --optim hf_abcdefghijklmnop", "unknown optim: optimizer '(secret)'"),
    ],
)
def test_bad_launch_lines(line, message):
    with pytest.raises(UsageError) as caught:
        read_launch(shlex.split(line), DATA)
    assert message in str(caught.value)


def test_the_tokens_of_a_launch_line_are_not_echoed():
    imported = read_launch(
        [
            "trl",
            "sft",
            "--model_name_or_path",
            "a/b",
            "--dataset_name",
            "c",
            "--hub_token",
            "hf_abcdefghijklmnop",
        ],
        DATA,
    )
    assert "abcdefgh" not in str(imported.to_document())
