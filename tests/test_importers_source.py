"""Scripts, notebooks, shell files and texts as people have them: what is written in them is read, what is not
is named, and nothing runs.
"""

import json
import shlex
from pathlib import Path

import pytest

from memplan.planner.importers.anyfile import read_file
from memplan.planner.importers.launch import read_launch
from memplan.planner.importers.rules import Imported
from memplan.planner.importers.shell import launch_lines
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError

HEAD = "from transformers import AutoModelForCausalLM, TrainingArguments\nfrom peft import LoraConfig\n"
CALLS = """
model = AutoModelForCausalLM.from_pretrained({model})
lora = LoraConfig(r={rank}, target_modules="all-linear")
args = TrainingArguments(output_dir="o", per_device_train_batch_size={batch}, bf16=True)
"""


def read(tmp_path: Path, text: str, name: str = "train.py") -> Imported:
    path = tmp_path / name
    path.write_text(text)
    return read_file(path)


SETTINGS = {
    "constants": ("MODEL, N = 'a/b', 4\nRANK: int = 2 * N\n", "'a/b'", "RANK", "N"),
    "a dataclass": (
        "@dataclass\nclass Args:\n    model: str = 'a/b'\n    rank: int = 8\n"
        "    batch: int = field(default=4)\n"
        "args = Args()\n",
        "args.model",
        "args.rank",
        "args.batch",
    ),
    "a dataclass with keywords": (
        "@dataclass\nclass Args:\n    model: str\n    rank: int = 1\n    batch: int = 4\n"
        "args = Args(model='a/b', rank=8)\n",
        "args.model",
        "args.rank",
        "args.batch",
    ),
    "argparse": (
        "p = ArgumentParser()\np.add_argument('--model-name', default='a/b')\np.add_argument('--lora_r', "
        "type=int, default=8)\np.add_argument('-b', '--batch', dest='bs', default=4)\n"
        "args = p.parse_args()\n",
        "args.model_name",
        "args.lora_r",
        "args.bs",
    ),
    "a namespace": (
        "args = SimpleNamespace(model='a/b', rank=8, batch=4)\n",
        "args.model",
        "args.rank",
        "args.batch",
    ),
    "a class of settings": (
        "class CFG:\n    model = 'a/b'\n    rank = 8\n    batch = 4\n",
        "CFG.model",
        "CFG.rank",
        "CFG.batch",
    ),
    "a dictionary": (
        "config = {'model': 'a/b', 'lora': {'r': 8}, 'batch': 4}\n",
        "config['model']",
        "config['lora']['r']",
        "config.get('batch', 1)",
    ),
    "the environment": (
        "MODEL = os.environ.get('MODEL', 'a/b')\nRANK = int(os.getenv('RANK', '8'))\n",
        "MODEL",
        "RANK",
        "int(4)",
    ),
    "texts and choices": (
        "org, size, big = 'a', 'b', True\n",
        "f'{org}/{size}'",
        "8 if big else 2",
        "None or 4",
    ),
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_values_from_where_scripts_have_them(tmp_path, settings):
    before, model, rank, batch = SETTINGS[settings]
    if settings == "constants":
        before = "N = 4\nRANK: int = 2 * N\n"
    imported = read(tmp_path, HEAD + before + CALLS.format(model=model, rank=rank, batch=batch))
    assert (imported.model, imported.fields["rank"], imported.fields["micro_batch"]) == ("a/b", 8, 4)
    assert not imported.by_status("unknown")


def test_a_parameter_with_a_default_is_its_default(tmp_path):
    text = (
        HEAD
        + "def train(r: int = 8, *, batch=4, name: str = typer.Option('a/b')):\n"
        + "".join(
            f"    {line}\n" for line in CALLS.format(model="name", rank="r", batch="batch").splitlines()
        )
    )
    imported = read(tmp_path, text)
    assert (imported.model, imported.fields["rank"], imported.fields["micro_batch"]) == ("a/b", 8, 4)


def test_what_only_a_caller_says_is_named_and_never_a_word(tmp_path):
    imported = read(
        tmp_path,
        HEAD
        + "m = AutoModelForCausalLM.from_pretrained(args.model_name, attn_implementation=args.attention)\n"
        + "lora = LoraConfig(r=args.rank, task_type=TaskType.CAUSAL_LM)\n"
        + "t = TrainingArguments(output_dir='o', per_device_train_batch_size=args.batch, bf16=True)\n",
    )
    assert imported.model is None and imported.notes == [
        "the model is args.model_name, which only its caller says"
    ]
    assert imported.fields["rank"] == 8 and imported.fields["micro_batch"] == 8, "the libraries' defaults"
    assert "LoraConfig(r) is args.rank, not a literal: its default is assumed" in imported.warnings
    assert {report.key for report in imported.by_status("unknown")} == {
        "from_pretrained(attn_implementation)",
        "LoraConfig(r)",
        "TrainingArguments(per_device_train_batch_size)",
    }


def test_a_name_with_two_values_is_not_known(tmp_path):
    text = HEAD + "r = 4\nif big:\n    r = 8\n" + CALLS.format(model="'a/b'", rank="r", batch=1)
    assert {report.key for report in read(tmp_path, text).by_status("unknown")} == {"LoraConfig(r)"}


@pytest.mark.parametrize(
    ("trainer", "task"),
    [("SFTTrainer", "sft"), ("GRPOTrainer", "grpo"), ("DPOTrainer", "dpo"), ("RewardTrainer", "reward")]
    + [("RLOOTrainer", "rloo"), ("PRMTrainer", "prm")],
)
def test_a_trainer_is_given_the_models_name(tmp_path, trainer, task):
    text = f"t = {trainer}(model='Qwen/Qwen3-8B', peft_config=LoraConfig(r=16), train_dataset=data)\n"
    imported = read(tmp_path, text)
    assert imported.model == "Qwen/Qwen3-8B" and imported.fields["recipe"] == "trl"
    assert imported.fields.get("task", "sft") == task


def test_an_unsloth_script_has_its_own_length_and_targets(tmp_path):
    imported = read(
        tmp_path,
        "from unsloth import FastLanguageModel, is_bfloat16_supported\nn = 4096\n"
        "model, tok = FastLanguageModel.from_pretrained(model_name='unsloth/Qwen3-8B', max_seq_length=n, "
        "load_in_4bit=True)\n"
        "model = FastLanguageModel.get_peft_model(model, r=32, lora_alpha=32, random_state=1, "
        "target_modules=['q_proj', 'o_proj'], use_gradient_checkpointing='unsloth')\n"
        "t = SFTTrainer(model=model, args=SFTConfig(per_device_train_batch_size=2, optim='adamw_8bit', "
        "fp16=not is_bfloat16_supported(), bf16=is_bfloat16_supported()))\n",
    )
    fields = imported.fields
    assert imported.model == "unsloth/Qwen3-8B" and fields["method"] == "qlora" and fields["rank"] == 32
    assert fields["sequence_length"] == 4096 and tuple(fields["targets"]) == ("q_proj", "o_proj")
    assert fields["autocast"] == "bfloat16" and fields["checkpointing"] != "none"
    resolve({}, imported=fields)


UNSLOTH = (
    "from unsloth import FastLanguageModel, is_bfloat16_supported\n"
    "model, tok = FastLanguageModel.from_pretrained('unsloth/Qwen3-8B', max_seq_length=2048{more})\n"
    "model = FastLanguageModel.get_peft_model(model)\n"
    "t = SFTTrainer(model=model, args=TrainingArguments(per_device_train_batch_size=2, {precision}))\n"
)
ASKED = "fp16=not is_bfloat16_supported(), bf16=is_bfloat16_supported()"


@pytest.mark.parametrize("precision", [ASKED, "max_steps=60"])
def test_an_unsloth_script_takes_unsloths_defaults(tmp_path, precision):
    """Not TRL's: a 4-bit base, half precision as the GPU has it, fp32 adapters, no whole logits."""
    imported = read(tmp_path, UNSLOTH.format(more="", precision=precision))
    assert not any("float32 weights" in warning for warning in imported.warnings)
    for gpu, half in ((None, "bfloat16"), ("rtx-4090", "bfloat16"), ("t4", "float16"), ("23GiB", "bfloat16")):
        fields = imported.fields_on(gpu)
        setup = resolve({"gpu": gpu}, imported=fields)
        assert (setup.method, setup.quant_type, setup.double_quant) == ("qlora", "nf4", True)
        assert (setup.weight_dtype, setup.autocast, setup.compute_dtype) == (half, half, half)
        assert (setup.rank, setup.adapter_dtype, setup.loss) == (16, "float32", "fused")
        assert setup.checkpointing == "non_reentrant" and not setup.kbit_prepare


@pytest.mark.parametrize(
    ("more", "method", "quantized"),
    [
        (", load_in_4bit=False", "lora", "none"),
        (", load_in_8bit=True", "lora", "int8"),
        (", load_in_16bit=True", "lora", "none"),
    ],
)
def test_an_unsloth_script_that_says_its_base(tmp_path, more, method, quantized):
    setup = resolve({}, imported=read(tmp_path, UNSLOTH.format(more=more, precision=ASKED)).fields)
    assert (setup.method, setup.quant_type) == (method, quantized)


def test_code_that_asks_the_gpu_is_answered_by_the_gpu_named(tmp_path):
    source = HEAD + CALLS.format(model="'a/b'", rank=16, batch=2).replace(
        "bf16=True", "bf16=torch.cuda.is_bf16_supported(), fp16=not torch.cuda.is_bf16_supported()"
    )
    imported = read(tmp_path, source)
    assert imported.fields_on("a100-80gb")["autocast"] == "bfloat16"
    assert imported.fields_on("t4")["autocast"] == "float16"


def test_a_classification_head_is_read(tmp_path):
    imported = read(
        tmp_path,
        "m = AutoModelForSequenceClassification.from_pretrained('google/gemma-2-2b', num_labels=5)\n"
        "t = TrainingArguments(output_dir='o', bf16=True)\n",
    )
    assert imported.fields["task"] == "classify" and imported.fields["num_labels"] == 5


def notebook(*cells: str | list[str]) -> str:
    return json.dumps({"cells": [{"cell_type": "code", "source": cell} for cell in cells]})


def test_a_notebook_with_a_bad_cell_and_shell_lines(tmp_path):
    text = notebook(
        "!pip install -q \\\n   trl peft",
        HEAD + CALLS.format(model="'a/b'", rank=16, batch=2),
        "prompt = build(\n   messages\n   tools)\n",
        "%%bash\nnvidia-smi --query-gpu=memory.used\n",
        "%%time\nlate = BitsAndBytesConfig(load_in_4bit=True)\n",
        "%load_ext tensorboard\nmodel.train()\n",
    )
    imported = read(tmp_path, text, "n.ipynb")
    assert imported.model == "a/b" and imported.fields["rank"] == 16
    assert [warning for warning in imported.warnings if "skipped" in warning] == [
        "cell 3 is not Python that can be read (line 2): skipped"
    ]


def test_a_notebook_that_only_launches(tmp_path):
    text = notebook(
        "!pip install trl", "!trl sft --model_name_or_path a/b --dataset_name d \\\n  --lora_r 4 --use_peft"
    )
    imported = read(tmp_path, text, "n.ipynb")
    assert imported.model == "a/b" and imported.fields["rank"] == 4


SCRIPT = """#!/bin/bash
#SBATCH --gpus=4
# python old.py --model_name_or_path x/y
export MODEL="a/b"
BATCH=2
pip install trl && cd work
nvidia-smi
echo "accelerate launch nothing"
CUDA_VISIBLE_DEVICES=0 accelerate launch --num_processes ${N:-4} \\
    train.py --model_name_or_path $MODEL --per_device_train_batch_size $BATCH \\
    --output_dir $OUT --bf16 true 2>&1 | tee log.txt
"""


def test_a_shell_file(tmp_path):
    imported = read(tmp_path, SCRIPT, "run.sh")
    assert imported.model == "a/b" and imported.fields["micro_batch"] == 2 and imported.fields["gpus"] == 4
    assert "--output_dir is a variable of the shell: its default is assumed" in imported.notes


def test_a_text_with_a_launch_line(tmp_path):
    text = (
        "# How\n\n```bash\naccelerate launch --config_file zero3.yaml sft.py --model_name_or_path a/b "
        "--use_peft --per_device_train_batch_size 2\n```\n"
    )
    imported = read(tmp_path, text, "README.md")
    assert imported.model == "a/b" and imported.fields["method"] == "lora"
    assert any("zero3.yaml is not here" in warning for warning in imported.warnings)
    assert imported.source == "README.md: launch line"


def test_a_line_that_a_person_types_must_have_its_files(tmp_path):
    words = shlex.split("accelerate launch --config_file nowhere.yaml sft.py --model_name_or_path a/b")
    with pytest.raises(UsageError, match="nowhere.yaml' is not a file"):
        read_launch(words, tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("$ trl sft --a 1", ["trl", "sft", "--a", "1"]),
        ("memplan --gpu t4 -- python t.py --b 2", ["python", "t.py", "--b", "2"]),
        ("python -m pip install x", None),
        ("python -c 'print(1)'", None),
        ("torchrun t.py 'open", None),
        ("rm -rf build/x", None),
    ],
)
def test_which_lines_launch(line, words):
    assert list(launch_lines(line)) == ([words] if words else [])


def test_a_script_that_a_line_starts_is_read_with_its_words(tmp_path):
    (tmp_path / "sft.py").write_text(
        HEAD + "p = ArgumentParser()\np.add_argument('--model', default='c/d')\np.add_argument('--rank', "
        "type=int, default=8)\nargs = p.parse_args()\n"
        + CALLS.format(model="args.model", rank="args.rank", batch=2)
    )
    imported = read_launch(shlex.split("python sft.py --model a/b"), tmp_path)
    assert (imported.model, imported.fields["rank"], imported.fields["micro_batch"]) == ("a/b", 8, 2)
    imported = read_launch(shlex.split("torchrun --nproc_per_node 2 sft.py --rank 32"), tmp_path)
    assert (imported.model, imported.fields["rank"], imported.fields["gpus"]) == ("c/d", 32, 2)


def test_a_script_on_transformers_own_parser_takes_the_words_as_options(tmp_path):
    (tmp_path / "run.py").write_text(
        "p = HfArgumentParser(TrainingArguments)\nm = X.from_pretrained(args.m)\n"
    )
    words = shlex.split("python run.py --model_name_or_path a/b --per_device_train_batch_size 3 --bf16 true")
    assert read_launch(words, tmp_path).fields["micro_batch"] == 3


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (
            "swift sft --model a/b --tuner_type lora --lora_rank 16 --dataset d --max_length 4096 "
            "--quant_method bnb --quant_bits 4",
            {"method": "qlora", "rank": 16, "alpha": 32, "sequence_length": 4096, "kbit_prepare": False},
        ),
        (
            "swift sft --model a/b --train_type full --torch_dtype bfloat16 --deepspeed zero2 "
            "--max_length 1024 --attn_impl flash_attn",
            {"method": "full", "parallel": "zero2", "micro_batch": 1, "attention": "flash_attention_2"},
        ),
        (
            'swift sft --model a/b --gradient_checkpointing_kwargs {"use_reentrant":false}',
            {"checkpointing": "non_reentrant", "targets": ("all-linear",)},
        ),
        ("swift sft --model a/b", {"checkpointing": "reentrant", "rank": 8, "dropout": 0.05}),
        (
            "unsloth train --model a/b --max-seq-length 4096 --lora-r 16 --dataset d",
            {"method": "qlora", "rank": 16, "sequence_length": 4096, "micro_batch": 2},
        ),
        (
            "unsloth train --model a/b --training-type full --batch-size 1",
            {"method": "full", "micro_batch": 1},
        ),
    ],
)
def test_swift_and_unsloth(line, fields, tmp_path):
    imported = read_launch(line.split(), tmp_path)
    assert imported.model == "a/b" and not imported.by_status("unknown")
    assert {key: imported.fields[key] for key in fields} == fields
    if "parallel" not in fields:
        resolve({}, imported=imported.fields)


def test_other_words_of_swift_and_unsloth_do_not_train(tmp_path):
    with pytest.raises(UsageError, match="swift infer does not train: expected swift sft or pt or rlhf"):
        read_launch(shlex.split("swift infer --model a/b"), tmp_path)


@pytest.mark.parametrize(
    "expression",
    [
        "x" * 5000 + ".y",
        "-" * 3000 + "1",
        "+".join("a" * 2000),
        "[" * 90 + "]" * 90,
        "9**9**9",
        "'a' * 10**9",
    ],
)
def test_any_expression_is_a_value_or_not_known(tmp_path, expression):
    try:
        read(tmp_path, f"l = LoraConfig(r={expression}, lora_alpha=4)\n")
    except UsageError as error:
        assert "\n" not in str(error) and len(str(error)) < 300


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            "prepare_model_for_kbit_training(m, gradient_checkpointing_kwargs=[1])",
            "expected a mapping of keyword arguments",
        ),
        ("m.gradient_checkpointing_enable(gradient_checkpointing_kwargs='x')", "expected a JSON object"),
    ],
)
def test_a_value_of_the_wrong_kind_is_one_message(tmp_path, call, expected):
    with pytest.raises(UsageError, match=expected):
        read(tmp_path, f"{call}\n")


def test_models_beside_the_trained_one_are_read_or_refused(tmp_path):
    script = "t = {0}Trainer(model='Qwen/Qwen2.5-1.5B', {1}, args={0}Config(max_completion_length=256{2}))\n"
    teacher = script.format("Distillation", "teacher_model='Qwen/Qwen2.5-7B'", "")
    s = resolve(imported=read(tmp_path, teacher).fields)
    assert (s.task, s.teacher, s.completion_length) == ("distill", "Qwen/Qwen2.5-7B", 256)
    with pytest.raises(UsageError, match="teacher_model.*not a model's name"):
        read(tmp_path, teacher.replace("'Qwen/Qwen2.5-7B'", "teacher"))
    rewarded = script.format("GRPO", "reward_funcs='Qwen/Qwen2.5-0.5B'", ", top_p=0.9, top_k=20")
    s = resolve(imported=read(tmp_path, rewarded).fields)
    assert (s.task, s.reward_model, s.top_p, s.top_k) == ("grpo", "Qwen/Qwen2.5-0.5B", 0.9, 20)
    several = read(tmp_path, rewarded.replace("='Qwen/Qwen2.5-0.5B'", "=['a/b', 'c/d']"))
    assert several.not_modelled() == ["reward_funcs (2 reward models)"]


@pytest.mark.parametrize(
    ("given", "model", "counted"),
    [
        ("score", None, True),
        ("[score, lambda completions, **more: [0.0]]", None, True),
        ("partial(score, weight=2)", None, True),
        ("judge", "Qwen/Qwen2.5-0.5B", True),
        ("name", "a/b", True),
        ("both", "Qwen/Qwen2.5-0.5B", True),
        ("good", None, True),
        ("made()", None, False),
        ("known_to_nobody", None, False),
        ("[judge, name]", None, False),
        ("AutoModelForSequenceClassification.from_pretrained('a/b', dtype='float32')", None, False),
    ],
)
@pytest.mark.parametrize("place", ["reward_funcs={}, args=", "{}, "])
def test_rewards_are_functions_models_or_not_counted(tmp_path, given, model, counted, place):
    text = (
        "from mine import good\n"
        "def score(completions, **more):\n    return [0.0]\n"
        "judge = AutoModelForSequenceClassification.from_pretrained('Qwen/Qwen2.5-0.5B', num_labels=1)\n"
        "name = 'a/b'\nboth = [score, judge]\n"
        f"t = GRPOTrainer('Qwen/Qwen2.5-1.5B', {place.format(given)}GRPOConfig(max_completion_length=256))\n"
    )
    imported = read(tmp_path, text)
    assert imported.fields.get("reward_model") == model and bool(imported.not_modelled()) is not counted
    assert any("taken to be a function" in warning for warning in imported.warnings) is (given == "good")


def test_a_distillations_divergence_moves_no_memory(tmp_path):
    text = "t = DistillationTrainer('a/b', 'c/d', DistillationConfig(beta=0.5, lmbda={}))\n"
    half, whole = (read(tmp_path, text.format(share)) for share in (0.5, 1.0))
    assert "reference" not in half.fields and half.fields["teacher"] == "c/d"
    assert any("high side" in warning for warning in half.warnings)
    assert not any("high side" in warning for warning in whole.warnings)


@pytest.mark.parametrize(
    ("loss", "mini_batch", "counted"),
    [
        ("MultipleNegativesRankingLoss(model)", None, True),
        ("CachedMultipleNegativesRankingLoss(model, mini_batch_size=16)", 16, True),
        ("losses.CachedMultipleNegativesRankingLoss(model)", 32, True),
        ("CoSENTLoss(model)", None, False),
        ("MatryoshkaLoss(model, MultipleNegativesRankingLoss(model))", None, False),
    ],
)
def test_a_script_of_sentence_transformers_embeds(tmp_path, loss, mini_batch, counted):
    text = (
        f"model = SentenceTransformer('Qwen/Qwen3-0.6B')\nloss = {loss}\n"
        "args = SentenceTransformerTrainingArguments(per_device_train_batch_size=64, bf16=True)\n"
        "t = SentenceTransformerTrainer(model=model, args=args, loss=loss)\n"
    )
    imported = read(tmp_path, text)
    s = resolve(imported=imported.fields)
    assert imported.model == "Qwen/Qwen3-0.6B" and imported.fields["recipe"] == "hf"
    assert (s.task, s.micro_batch, s.mini_batch) == ("embed", 64, mini_batch)
    cut = read(tmp_path, text.replace("loss =", "model.max_seq_length = 384\nloss =", 1))
    assert cut.fields["sequence_length"] == 384 and "sequence_length" not in imported.fields
    assert bool(imported.not_modelled()) is not counted
