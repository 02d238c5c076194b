"""`fit` answers what is asked: a table of sizes where no model is named, the largest micro-batch in the first
line, and a next command that reproduces its row exactly.
"""

import json
import shlex

import pytest

from memplan import api
from memplan.cli.main import run
from memplan.planner.answers.fit.command import command_line
from memplan.planner.answers.fit.sizes import SIZES
from memplan.planner.answers.search import fit
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.gpus import find_gpu


def test_fit_without_a_model_is_a_table_of_sizes(capsys):
    assert run(["fit", "--gpu", "rtx-3060", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "memplan.sizes/1" and document["gpu"]["name"] == "rtx-3060"
    rows = {(row["model"], row["method"]): row for row in document["rows"]}
    assert set(rows) == {(name, method) for name in SIZES for method in ("full", "lora", "qlora")}
    for (name, method), row in rows.items():
        same = api.plan(name, method=method, gpu="rtx-3060")
        assert row["device_bytes"] == same.peak.device_bytes and row["verdict"] == same.gpus[0].verdict
    largest = rows["llama-3.2-1b", "qlora"]["largest_micro_batch"]
    held = [
        api.plan("llama-3.2-1b", method="qlora", gpu="rtx-3060", micro_batch=batch).gpus[0].verdict
        for batch in (largest, largest + 1)
    ]
    assert held == ["fits", "no"]


def test_fit_with_neither_says_what_it_needs(capsys):
    assert run(["fit"]) == 2
    assert "fit needs a model, or a GPU" in capsys.readouterr().err


SCRIPT = (
    "model = AutoModelForCausalLM.from_pretrained(args.model_name)\n"
    "lora = LoraConfig(r=args.rank)\n"
    "t = TrainingArguments(output_dir='o', per_device_train_batch_size=2, bf16=True)\n"
)


def test_a_script_whose_model_only_its_caller_knows(tmp_path, capsys):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    assert run([str(path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "the model is args.model_name, which only its caller says" in out and "--model NAME" in out
    assert "LoraConfig(r) is args.rank, not a literal: its default is assumed" in out
    assert run([str(path), "--model", "qwen3-0.6b", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"]["name"] == "qwen3-0.6b" and document["setup"]["micro_batch"] == 2


FIELDS = [
    {},
    {"micro_batch": 4, "sequence_length": 1024, "rank": 64, "targets": ("q_proj", "v_proj")},
    {"checkpointing": "reentrant", "optimizer": "adafactor", "weight_dtype": "float16", "autocast": "none"},
    {
        "checkpointing": "none",
        "padded": True,
        "loss": "chunked",
        "recipe": "trl",
        "attention": "sdpa-efficient",
    },
    {"method": "qlora", "double_quant": False, "quant_type": "fp4", "kbit_prepare": False},
    {"recipe": "raw", "optimizer": "sgd", "optimizer_mode": "loop", "zero_grad": "after_step"},
    {"gpus": 8, "parallel": "fsdp", "fsdp_version": 1, "reshard_after_forward": False, "offload": "all"},
    {"gpus": 4, "parallel": "zero3", "zero_reduce_bucket": 10**8, "zero_overlap_comm": False},
    {"gpus": 2, "parallel": "ddp", "gradient_as_bucket_view": True, "allocator": "expandable"},
]


@pytest.mark.parametrize("fields", FIELDS, ids=range(len(FIELDS)))
def test_a_setup_as_options_is_the_same_setup(fields):
    setup = resolve(fields)
    words = shlex.split(command_line("qwen3-0.6b", setup, "rtx-4090"))
    assert words[:2] == ["memplan", "qwen3-0.6b"]
    again = _setup_of(words[1:])
    assert again == {**setup.to_document(), "gpu": "rtx-4090"}


def _setup_of(words):
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert run([*words, "--json"]) in (0, 1)
    return json.loads(out.getvalue())["setup"]


@pytest.mark.parametrize(
    ("model", "gpu", "fields"),
    [
        ("qwen3-0.6b", "rtx-3090", {"micro_batch": 2, "sequence_length": 4096}),
        ("qwen3-1.7b", "rtx-3060", {"sequence_length": 1024, "rank": 32}),
    ],
)
def test_next_reproduces_its_row(model, gpu, fields):
    found = fit(find(model).spec(), resolve({**fields, "gpu": gpu}), find_gpu(gpu))
    assert found.chosen is not None and found.chosen.setup is not None
    words = shlex.split(command_line(found.model, found.chosen.setup, gpu))
    options = _setup_of(words[1:])
    prediction = api.plan(model, resolve({k: v for k, v in options.items() if v is not None}))
    assert prediction.peak.device_bytes == found.chosen.device_bytes
    assert prediction.gpus[0].verdict == found.chosen.verdict == "fits"


def test_next_names_the_file_that_a_model_came_from_and_keeps_how_gpus_share_it(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(find("qwen3-0.6b").config))
    shares = ["--gpus", "4", "--parallel", "zero2"]
    run(["fit", "./mine", "--gpu", "rtx-3060", "--method", "full", "--explain", *shares])
    printed = " ".join(capsys.readouterr().out.split())
    words = shlex.split(printed.partition("next: ")[2].partition(" (--emit")[0])
    assert words[1] == "mine/config.json"
    setup = _setup_of(words[1:])
    assert (setup["gpus"], setup["parallel"], setup["gpu"]) == (4, "zero2", "rtx-3060")


def test_the_first_line_is_the_largest_micro_batch_with_what_it_needs(capsys):
    run(["fit", "qwen3-0.6b", "--gpu", "rtx-3090", "--seq", "4096"])
    first = capsys.readouterr().out.splitlines()[0]
    entry = fit(
        find("qwen3-0.6b").spec(), resolve({"sequence_length": 4096, "gpu": "rtx-3090"}), find_gpu("rtx-3090")
    ).asked
    assert first == f"largest micro-batch at 4,096 tokens: {entry.largest_batch} with lora as asked"
