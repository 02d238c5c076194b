"""Hostile input for every door of the command line, and what every answer must keep.

A door makes one command line (and the files that it names) from a seed; `problems` runs it in this process
and says what it broke: an exit code outside the contract, a traceback, more than five seconds or a gigabyte,
output beside a failure, a control character, a token, a message that names neither the file nor the key.

By hand: `PYTHONPATH=. python -m tests.fuzzing --cases 10000 [--door record] [--start 0]`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memplan.cli.main import run
from memplan.planner.tables.errors import shorten

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data" / "importers"
SECRET = "hf_QwErTyUiOpAsDfGhJkLzXcVbNm0123456789"
TOKENS = (SECRET, "sk-proj-QwErTyUiOpAsDfGhJkLz0123456789", "ghp_QwErTyUiOpAsDfGhJkLz0123456789ab")
CODES = (0, 1, 2, 3, 4)
MOST_SECONDS, MOST_BYTES = 5.0, 2**30
ITSELF = (
    *(
        "JSON",
        "YAML",
        "TOML",
        "UTF-8",
        "nested",
        "expands",
        "values",
        "bytes",
        "characters",
        "(secret)",
        "is empty",
    ),
    *("not a mapping", "compute capability", "Hugging Face id", "unknown", "is not a", "base model", "fsdp"),
    *(
        "targets names",
        "dropout is",
        "key",
        "Config",
        "Arguments",
        "from_pretrained",
        "attention is",
        "model_type",
        "formula has no rule",
    ),
)
"""A refusal may name what is wrong with the file as a whole, or the name in it that is not known."""
LONGEST_LINE = 130  # of standard error: the longest word that a message may have, and what stands around it


@dataclass
class Line:
    """One command line, what it reads on standard input, and words of which a refusal must name one."""

    args: list[str]
    stdin: bytes = b""
    names: list[str] = field(default_factory=list)


Door = Callable[[random.Random, Path], Line]


def nasty(rng: random.Random, depth: int = 0) -> Any:
    """A value that does not belong where it is put."""
    plain: list[Any] = [
        None,
        True,
        -1,
        0,
        7,
        0.5,
        -0.5,
        1e308,
        10**30,
        10**100,
        10**400,
        float("nan"),
        float("inf"),
        "",
        " ",
        "x",
        "1e999",
        "9" * 300,
        "a" * 500,
        "\x1b[31mred\x1b[0m\x07",
        "\u202eright to left\u0085",
        "\0",
        "../../../../etc/passwd",
        "/dev/zero",
        "lora",
        "auto",
        "2020-99-99",
        "${x}",
        "<script>alert(1)</script>",
        rng.choice(TOKENS),
        [],
        {},
        [[]],
        {"a": 1},
        {"": None},
    ]
    value = rng.choice(plain)
    if depth < 3 and rng.random() < 0.2:
        inner = nasty(rng, depth + 1)
        value = rng.choice([[inner], {"x": inner}, [inner] * 20, {SECRET: inner}])
    return value


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into a document but the empty one, at most three entries of a list."""
    inner: Any = ()
    if isinstance(document, dict):
        inner = document.items()
    elif isinstance(document, list):
        inner = enumerate(document[:3])
    return [p for key, value in inner for p in ((*path, key), *places(value, (*path, key)))]


def broken(rng: random.Random, document: Any) -> tuple[Any, list[str]]:
    """A document with one to three changes: a value, a key, an entry more or less; and the keys that moved."""
    document, names = copy.deepcopy(document), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = places(document)
        if not found:
            break
        *way, last = rng.choice(found)
        names += [str(step) for step in (*way, last) if isinstance(step, str)]
        inside = document
        for step in way:
            inside = inside[step]
        kind = rng.choice(("value", "value", "value", "drop", "rename", "more"))
        if kind == "drop":
            del inside[last]
        elif kind == "value" or not isinstance(inside, dict):
            inside[last] = nasty(rng)
        elif kind == "rename":
            names.append(rng.choice((f"{last}x", str(last)[:-1], "\x1b]0;t\x07", SECRET, "")))
            inside[names[-1]] = inside.pop(last)
        else:
            names.append(rng.choice(("token", "x" * 200, "model", "method", SECRET, "\u202e")))
            inside[names[-1]] = nasty(rng)
    return document, names


def text_of(rng: random.Random, document: Any) -> str:
    """JSON, in which a large integer may have thousands of digits."""
    text = json.dumps(document, indent=rng.choice((None, 1)))
    return text.replace(str(10**400), "7" * rng.choice((400, 4000, 5000)))


def spoiled(rng: random.Random, text: str) -> bytes:
    """Bytes of a text, one time in six cut off, overwritten or blown up."""
    data = bytearray(text.encode())
    kind = rng.randrange(24)
    if kind == 0:
        del data[rng.randrange(len(data) + 1) :]
    elif kind == 1 and data:
        for _ in range(3):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 2:
        data = bytearray(
            rng.choice((b"[", b"{", b"\n- ", b'{"a":', b"a: &a [*a]\n", b"\xff\xfe", b" ")) * 3000
        )
    elif kind == 3:
        data *= rng.choice((2, 50))
    return bytes(data)


def written(rng: random.Random, path: Path, text: str) -> str:
    path.write_bytes(spoiled(rng, text))
    return str(path)


def read(name: str) -> str:
    return (DATA / name).read_text(encoding="utf-8")


# ---- doors -------------------------------------------------------------------------------------------------


def config(rng: random.Random, folder: Path) -> Line:
    catalog = (ROOT / "planner/inputs/catalog").glob("*.json")
    entry = rng.choice(sorted(path for path in catalog if path.name != "index.json"))
    document, names = broken(rng, json.loads(entry.read_text(encoding="utf-8")))
    return Line([written(rng, folder / "config.json", text_of(rng, document))], names=names)


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
        "TrainingArguments(per_device_train_batch_size={}, optim={}, fsdp={}, gradient_checkpointing_kwargs={})",
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
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {} GiB. GPU {} has a total capacity of {} GiB of "
    "which {} MiB is free. Process 7 has {} GiB memory in use. Of the allocated memory {} GiB is allocated by PyTorch, "
    "and {} MiB is reserved by PyTorch but unallocated. If reserved",
    "RuntimeError: CUDA out of memory. Tried to allocate {} MiB (GPU {}; {} GiB total capacity; {} GiB already "
    "allocated; {} MiB free; {} GiB reserved in total by PyTorch)",
    "MPS backend out of memory (MPS allocated: {} GB, other allocations: {} KB, max allowed: {} GB). Tried to "
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


# ---- the judge ---------------------------------------------------------------------------------------------


class Input:
    """Standard input of given bytes."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)

    def isatty(self) -> bool:
        return False


def answered(line: Line) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command line, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.stdin = sys.stdin, Input(line.stdin)  # type: ignore[assignment]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(line.args)
    finally:
        sys.stdin = before
    return code, out.getvalue(), err.getvalue()


def problems(line: Line) -> list[str]:
    """What a command line broke of what every answer must keep."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    try:
        code, out, err = answered(line)
    except BaseException as error:
        return [f"raised {type(error).__name__}: {error}"]
    seconds = time.process_time() - started
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
    return [
        *([f"{seconds:.1f} s"] if seconds > MOST_SECONDS else []),
        *([f"{grown / 2**20:.0f} MiB"] if grown > MOST_BYTES else []),
        *broken_promises(code, out, err, line.names),
    ]


def broken_promises(code: int, out: str, err: str, names: list[str]) -> list[str]:
    """The same of an answer alone."""
    found = []
    if code not in CODES:
        found.append(f"exit code {code}: {err.strip().splitlines()[-2:]}")
    if "Traceback" in err or "Error: " in err and "memplan: " not in err:
        found.append("a traceback")
    if code in (2, 3) and out:
        found.append(f"standard output on failure: {out[:80]!r}")
    if code in (2, 3) and not err.startswith("memplan: "):
        found.append(f"no message: {err[:80]!r}")
    for text, where in ((out, "out"), (err, "err")):
        odd = {c for c in text if not c.isprintable() and c != "\n"}
        if odd:
            found.append(f"control characters on {where}: {sorted(odd)!r}")
        if any(token in text for token in TOKENS):
            found.append(f"a token on {where}")
    word = max(err.split(), key=len, default="")
    if len(word) > LONGEST_LINE:
        found.append(f"a word of {len(word)} characters: {word[:60]}")
    if code == 2 and names and not any(name and shorten(name)[:20] in err for name in (*names, *ITSELF)):
        found.append(f"names none of {names[:6]}: {err[:200]!r}")
    return found


def fuzz(door: str, seed: int) -> list[str]:
    """What one case of a door broke: nothing, or a line for each, with the seed."""
    with tempfile.TemporaryDirectory() as folder:
        line = DOORS[door](random.Random(f"{door} {seed}"), Path(folder))
        return [f"{door} {seed}: {problem} <- {line.args!r:.300}" for problem in problems(line)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Hostile input for every door, by hand.")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--door", action="append", choices=tuple(DOORS))
    chosen = parser.parse_args()
    for door in chosen.door or DOORS:
        started, found = time.perf_counter(), []
        for seed in range(chosen.start, chosen.start + chosen.cases):
            broke = fuzz(door, seed)
            found += broke
            if broke and len(found) <= 40:
                print("\n".join(broke), flush=True)
        took = time.perf_counter() - started
        print(f"{door}: {chosen.cases} cases, {len(found)} broken, {took:.0f} s", flush=True)


if __name__ == "__main__":
    main()
