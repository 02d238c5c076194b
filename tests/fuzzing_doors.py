"""One door each: a seed -> a command line, and the files that it names."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzzing_input import SECRET, broken, nasty, spoiled, text_of, written

from memplan.planner.inputs.families.table import FAMILIES

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data" / "importers"


@dataclass
class Line:
    """One command line, what it reads on standard input, words of which a refusal must name one, and the
    words of its files, of which a refusal may name one as a key instead.
    """

    args: list[str]
    stdin: bytes = b""
    names: list[str] = field(default_factory=list)
    words: frozenset[str] = frozenset()
    seconds: float = 5.0  # of this process that the answer may take


def read(name: str) -> str:
    return (DATA / name).read_text(encoding="utf-8")


TRACED_SECONDS = 120.0
"""A family that the formula lacks is traced: the real class runs, forty layers of experts for a minute."""
Door = Callable[[random.Random, Path], Line]


# ---- doors -------------------------------------------------------------------------------------------------


def config(rng: random.Random, folder: Path) -> Line:
    catalog = (ROOT / "planner/inputs/catalog").glob("*.json")
    left_out = ("index", "whisper")  # without --task seq2seq Whisper is refused, whatever else is wrong
    entry = rng.choice(sorted(path for path in catalog if not path.name.startswith(left_out)))
    document, names = broken(rng, json.loads(entry.read_text(encoding="utf-8")))
    line = Line([written(rng, folder / "config.json", text_of(rng, document))], names=names)
    if str(document.get("model_type")) not in FAMILIES:
        line.seconds = TRACED_SECONDS
    return line


def _loaded(name: str) -> Any:
    import yaml

    return yaml.safe_load(read(name))


YAMLS = sorted(
    path.name
    for path in DATA.iterdir()
    if path.suffix in (".yaml", ".json") and "setup" not in path.name and path.name != "prediction.json"
)


def training(rng: random.Random, folder: Path) -> Line:
    name = rng.choice(YAMLS)
    document, names = broken(rng, _loaded(name))
    return Line([written(rng, folder / name, text_of(rng, document))], names=[*names, name])


def setup(rng: random.Random, folder: Path) -> Line:
    name = rng.choice(("setup_full.json", "setup_qlora.yaml", "prediction.json"))
    whole = _loaded(name)
    whole.pop("model" if name != "prediction.json" else "", None)
    document, names = broken(rng, whole)
    path = written(rng, folder / name, text_of(rng, document))
    return Line(["llama-7b", "--setup", path], names=[*names, name])


def adapter(rng: random.Random, folder: Path) -> Line:
    name = rng.choice(("lora", "adalora", "ia3"))
    document, names = broken(rng, json.loads(read(f"{name}/adapter_config.json")))
    path = written(rng, folder / "adapter_config.json", text_of(rng, document))
    return Line(["llama-7b", "--engine", "formula", "--adapter", path], names=[*names, "adapter"])


ARGUMENTS = (
    "[1]",
    "3",
    "{}",
    "None",
    "-1",
    "'x'",
    "1e999",
    "9" * 300,
    "torch.float8",
    "f()",
    "**x",
    "[[]]",
    repr(SECRET),
)


def script(rng: random.Random, folder: Path) -> Line:
    name = rng.choice(("snippet_qlora.py", "snippet_trainer.py", "snippet_markdown.md"))
    text = read(name)
    calls = (
        "prepare_model_for_kbit_training(m, gradient_checkpointing_kwargs={})",
        "prepare_model_for_kbit_training({})",
        "m.gradient_checkpointing_enable({})",
        "m.gradient_checkpointing_enable(gradient_checkpointing_kwargs={})",
        "LoraConfig(r={}, target_modules={})",
        "BitsAndBytesConfig(load_in_4bit={}, bnb_4bit_compute_dtype={})",
        "TrainingArguments(per_device_train_batch_size={}, optim={}, fsdp={}, "
        "gradient_checkpointing_kwargs={})",
        "SFTConfig(max_length={}, packing={}, bf16={})",
        "AutoModelForCausalLM.from_pretrained({}, dtype={}, attn_implementation={})",
        "x = [{}] * {}",
    )
    lines = text.splitlines()
    for _ in range(rng.choice((1, 1, 2))):
        call = rng.choice(calls)
        line = call.format(*(rng.choice(ARGUMENTS) for _ in range(call.count("{}"))))
        fenced = [i for i, word in enumerate(lines) if word.startswith("```python")] or [-1]
        lines.insert(fenced[0] + 1 if rng.random() < 0.5 else rng.randrange(len(lines)), line)
    return Line([written(rng, folder / name, "\n".join(lines))], names=[name, "("])


def notebook(rng: random.Random, folder: Path) -> Line:
    code = read(rng.choice(("snippet_qlora.py", "snippet_trainer.py")))
    book = {"cells": [{"cell_type": "code", "source": code.splitlines(True)}], "nbformat": 4, "metadata": {}}
    document, names = broken(rng, book)
    return Line(
        [written(rng, folder / "n.ipynb", text_of(rng, document))], names=[*names, "n.ipynb", "notebook"]
    )


WORDS = (
    *("accelerate", "launch", "torchrun", "deepspeed", "python", "-m", "trl", "sft", "axolotl", "train"),
    *("llamafactory-cli", "env", "--num_processes", "--nproc_per_node", "--nnodes", "8", "1:4", "gpu"),
    *("--config_file", "--deepspeed", "--fsdp", "full_shard", "--use_deepspeed", "--zero_stage", "3"),
    *("--model_name_or_path", "llama-7b", "--output_dir", "x", "--per_device_train_batch_size", "4"),
    *("--bf16", "--optim", "train.py", "A=b", "CUDA_VISIBLE_DEVICES=0,1", "--", "=", "--=", "{", '{"a":1}'),
)


def launch(rng: random.Random, folder: Path) -> Line:
    name = rng.choice(YAMLS)
    path = written(rng, folder / name, text_of(rng, broken(rng, _loaded(name))[0]))
    words = [*WORDS, path, path]
    line = [
        rng.choice(words) if rng.random() < 0.85 else str(nasty(rng)).replace("\0", "")
        for _ in range(rng.randrange(1, 9))
    ]
    first = rng.choice((["accelerate", "launch"], ["trl", "sft"], ["torchrun"], ["axolotl", "train"], []))
    return Line(["--", *first, *line])


MESSAGES = (  # oom.FORMS, with places for numbers
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {} GiB. GPU {} has a total capacity of "
    "{} GiB of "
    "which {} MiB is free. Process 7 has {} GiB memory in use. Of the allocated memory {} GiB is allocated "
    "by PyTorch, "
    "and {} MiB is reserved by PyTorch but unallocated. If reserved",
    "RuntimeError: CUDA out of memory. Tried to allocate {} MiB (GPU {}; {} GiB total capacity; {} GiB "
    "already "
    "allocated; {} MiB free; {} GiB reserved in total by PyTorch)",
    "MPS backend out of memory (MPS allocated: {} GB, other allocations: {} KB, max allowed: {} GB). Tried "
    "to "
    "allocate {} MB on private pool.",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate {} bytes",
    "CUDA error: out of memory {}",
)
NUMBERS = (
    "2.00",
    "0",
    "0.00",
    "79.15",
    "9" * 30,
    "9" * 400,
    "1e9",
    "-1",
    "1.2.3",
    "",
    "1048576",
    "  2",
    "1073741824.00",
)


def log(rng: random.Random, folder: Path) -> Line:
    message = rng.choice(MESSAGES)
    text = message.format(*(rng.choice(NUMBERS) for _ in range(message.count("{}"))))
    filler = rng.choice(("", "\n", " " * 40_000, "\t\n" * 9_000, "Traceback (most recent call last)\n" * 99))
    noise = rng.choice(("", "\x1b[31m", "[rank0]: ", '  File "x.py", line 3, in forward\n', f"{SECRET}\n"))
    text = filler + noise + text + rng.choice(("", filler, noise, "GiB " * 20_000))
    args = ["oom", *rng.choice(([], ["--json"], ["--model", "gpt2"], ["--model", "llama-7b", "--json"]))]
    data = spoiled(rng, text)
    if rng.random() < 0.5:
        (folder / "run.log").write_bytes(data)
        return Line([*args, str(folder / "run.log")])
    return Line(args, stdin=data)


def _record(rng: random.Random) -> tuple[Any, list[str]]:
    path = rng.choice(sorted((ROOT / "measurements" / "cpu").glob("*.json")))
    document = json.loads(path.read_text(encoding="utf-8"))
    if rng.random() < 0.7:
        document.pop("prediction", None)
    return broken(rng, document)


def record(rng: random.Random, folder: Path) -> Line:
    document, names = _record(rng)
    path = written(rng, folder / "record.json", text_of(rng, document))
    args = rng.choice(
        (["--engine", "formula"], ["--engine", "formula", "--json"], ["--engine", "formula", "--explain"])
    )
    recorded = ["--engine", "trace", "--recorded"] if rng.random() < 0.3 else args
    where = str(folder) if rng.random() < 0.2 else path
    return Line(["validate", where, *recorded], names=[*names, "record.json"])


CAMPAIGN = {
    "name": "c",
    "device": "cpu",
    "steps": 3,
    "deadline": "60s",
    "models": {"t": {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}},
    "defaults": {"recipe": "raw"},
    "cases": [
        {"model": "gpt2", "method": "lora", "cap": "24GiB"},
        {"model": "t", "grid": {"rank": [1, 2], "shape": [{"micro_batch": 1}]}, "skip": [{"rank": 1}]},
    ],
}


def campaign(rng: random.Random, folder: Path) -> Line:
    document, names = broken(rng, CAMPAIGN)
    if rng.random() < 0.1:
        document = {
            "device": "cpu",
            "cases": [{"model": "gpt2", "grid": dict.fromkeys("abcdefgh", list(range(99)))}],
        }
    path = written(rng, folder / "c.yaml", text_of(rng, document))
    args = rng.choice((["--list"], ["--list", "--json"], ["--list", "--only", "r1"], ["--unpack"]))
    return Line(["campaign", path, "--out", str(folder / "out"), *args], names=[*names, "c.yaml"])


TOML = ('""', "[]", "{}", "-1", "1e400", "true", '"x"', "{a=1}", "9" * 30, "9" * 5000, "nan", "inf", "[[1]]")
TOML += ("1979-05-27", f'"{"a" * 500}"', f'"{SECRET}"', '"\\u001b[31m"', "1e308", "[1, 2, 3]")


def claims(rng: random.Random, folder: Path) -> Line:
    whole = (ROOT / "validate" / "claims.toml").read_text(encoding="utf-8").split("\n[[claim]]\n")
    plain = [text for text in whole[1:] if "library_fact" not in text]  # those import every library
    text = "[[claim]]\n" + rng.choice(plain).partition("# -----")[0].partition("[[conflict]]")[0]
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.choice([n for n, line in enumerate(lines) if "=" in line])
        key, _, value = lines[at].partition("=")
        kinds = (f"{key}= {rng.choice(TOML)}", f"foo ={value}", f"{lines[at]}\n{lines[at]}", "")
        lines[at] = rng.choice(kinds)
    path = written(rng, folder / "mine.toml", "\n".join(lines))
    return Line(["claims", path, *rng.choice(([], ["--json"], ["--explain"]))], names=["mine.toml"])


def diff(rng: random.Random, folder: Path) -> Line:
    paths = []
    for name in ("old.json", "new.json"):
        document = json.loads(read("prediction.json")) if rng.random() < 0.5 else _record(rng)[0]
        changed = broken(rng, document)[0] if rng.random() < 0.8 else document
        paths.append(written(rng, folder / name, text_of(rng, changed)))
    limit = rng.choice(
        ([], ["--fail-over", "1%"], ["--fail-over", str(nasty(rng)).replace("\0", "")], ["--json"])
    )
    return Line(["diff", *paths, *limit])


OPTIONS = (
    *(
        "--method",
        "--recipe",
        "--batch",
        "--seq",
        "--rank",
        "--targets",
        "--dtype",
        "--autocast",
        "--optimizer",
    ),
    *("--attention", "--loss", "--load", "--gpu", "--gpus", "--parallel", "--device", "--adapter", "--setup"),
)
FIELDS = (
    "micro_batch",
    "rank",
    "targets",
    "quant_block",
    "gpus",
    "dropout",
    "alpha",
    "zz",
    "adapter",
    "method",
)


def options(rng: random.Random, folder: Path) -> Line:
    model = rng.choice(("llama-7b", "gpt2", "opt-350m", str(nasty(rng))))
    args = [rng.choice(("plan", "compare", "fit")), model]
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = (
            str(nasty(rng)) if rng.random() < 0.7 else rng.choice(("8", "1", "lora", "t4", "ddp", "eager"))
        )
        value = value if rng.random() < 0.9 else "1" + "0" * rng.choice((100, 5000))
        if rng.random() < 0.3:
            args += ["--set", f"{rng.choice(FIELDS)}={value}"]
        else:
            args += [rng.choice(OPTIONS), value]
    if args[0] == "fit" and "--gpu" not in args:
        args += ["--gpu", "rtx-4090"]
    return Line([arg.replace("\0", "") for arg in args] + rng.choice(([], ["--json"])))


DOORS: dict[str, Door] = {
    "config": config,
    "training": training,
    "setup": setup,
    "adapter": adapter,
    "script": script,
    "notebook": notebook,
    "launch": launch,
    "log": log,
    "record": record,
    "campaign": campaign,
    "claims": claims,
    "diff": diff,
    "options": options,
}
