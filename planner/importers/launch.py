"""The launch line as typed: accelerate launch, torchrun, deepspeed, trl sft, axolotl train, llamafactory-cli
train, python script.py.

Words are read, never run. The launcher says how many ranks there are and what they share; the trainer's own
words and files say the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from memplan.planner.importers.files import (
    FORMATS,
    Format,
    follow,
    merge,
    read_document,
    read_mapping,
    read_training_file,
    recognize,
)
from memplan.planner.importers.fsdp import prefetch, strategy
from memplan.planner.importers.launch_line import Line, take_apart, unknown_variables
from memplan.planner.importers.rules import Facts, Imported, flag, integer
from memplan.planner.importers.sharding import finish_accelerate, stage_in_name
from memplan.planner.importers.swift import VARIABLES
from memplan.planner.importers.tasks import rules_of, script_task
from memplan.planner.importers.words import pairs, read_script
from memplan.planner.tables.errors import UsageError, shorten


def read_launch(words: list[str], folder: Path | None = None, beside: bool = True) -> Imported:
    """The setup that a launch line describes; files that it names are read, relative to `folder`. UsageError
    where it makes no sense.

    `beside` False: the line stands in a text whose files need not be here; the name of a missing one may tell
    how ranks share.
    """
    folder = folder or Path()
    line = take_apart(list(words))
    unknown_variables(line)
    imported = _program(line, folder)
    ranks = line.ranks * line.machines
    if line.options.get("config_file"):
        config = folder / str(line.options["config_file"])
        if beside or config.is_file():
            merge(imported, read_training_file(config))
        else:
            _missing(imported, config.name)
    if line.options.get("deepspeed_config_file"):
        merge(
            imported,
            read_document(
                read_mapping(folder / str(line.options["deepspeed_config_file"])),
                FORMATS["deepspeed"],
                "deepspeed",
            ),
        )
    before = set(imported.fields)
    for key, value in _sharding(line.options, imported).items():
        imported.fields[key] = value
    if ranks > 1:
        imported.fields["gpus"] = ranks
    if imported.fields.get("gpus", 1) > 1:
        imported.fields.setdefault("parallel", "ddp")
    if line.expandable is not None:
        imported.fields["allocator"] = "expandable" if line.expandable else "native"
    if imported.before_ampere:
        imported.before_ampere |= {k: v for k, v in imported.fields.items() if k not in before}
    imported.notes += line.notes
    return imported


def _missing(imported: Imported, name: str) -> None:
    """An accelerate file that is not here: what its name tells."""
    stage = stage_in_name(name)
    parallel = "fsdp" if "fsdp" in name.lower() else None if stage is None else f"zero{stage}"
    assumed = "one GPU is assumed" if parallel is None else f"{parallel}, as its name says"
    imported.warnings.append(
        f"the file {shorten(name, 60)} is not here: {assumed}; how many GPUs it says is not known (--gpus N)"
    )
    if parallel is not None:
        imported.notes.append(f"with --gpus N: --parallel {parallel}")


def _sharding(options: Mapping[str, Any], imported: Imported) -> dict[str, Any]:
    """accelerate's own options, which say the same as its file."""
    facts: dict[str, Any] = {}
    if options.get("use_fsdp"):
        facts["_distributed"] = "fsdp"
        if "fsdp_version" in options:
            facts["_fsdp_version"] = integer("--fsdp_version", options["fsdp_version"])
        for key in ("fsdp_reshard_after_forward", "fsdp_sharding_strategy"):
            if key in options:
                facts["_strategy"] = strategy(f"--{key}", options[key])
        for fact, read in (("use_orig_params", flag), ("backward_prefetch", prefetch)):
            if f"fsdp_{fact}" in options:
                facts[f"_{fact}"] = read(f"--fsdp_{fact}", options[f"fsdp_{fact}"])
        facts["_fsdp_offload"] = str(options.get("fsdp_offload_params", "false")).lower() == "true"
    elif options.get("use_deepspeed"):
        stage = str(options.get("zero_stage", "2"))
        facts |= {"_distributed": "deepspeed", "_stage": int(stage) if stage in ("1", "2", "3") else 0}
        if options.get("deepspeed_config_file"):
            return {}
    elif options.get("multi_gpu"):
        facts["_distributed"] = "multi_gpu"
    if options.get("mixed_precision"):
        facts["_mixed"] = str(options["mixed_precision"]).lower()
    known = facts or options.get("cpu")
    if options.get("cpu"):
        facts["_cpu"] = True
    if not known:
        return {}
    if "num_processes" in options:
        facts["_processes"] = integer("--num_processes", options["num_processes"])
    warnings: list[str] = []
    fields = finish_accelerate(facts, warnings)
    imported.warnings += warnings
    return fields


def _program(line: Line, folder: Path) -> Imported:
    """Which trainer runs, and what its words say."""
    name = Path(line.program).name if "/" in line.program or line.program.endswith(".py") else line.program
    return next(read for pattern, read in PROGRAMS if pattern.fullmatch(name))(line, folder, name)


def _trl(line: Line, folder: Path, name: str) -> Imported:
    """`trl sft ...`, `trl.scripts.sft`, `sft.py`: TRL's options, and what is trained beside the model."""
    what = Path(name).stem if name.endswith(".py") else name.rpartition(".")[2]
    if "." not in name and line.words[:1] and not line.words[0].startswith("-"):
        what = line.words.pop(0)
    task = script_task(what)
    imported = _options(line, folder, "trl", task=task)
    if task is not None and task != "sft":
        imported.notes.append(f"trl {shorten(what, 20)}: task {task}")
    return imported


def _torchtune(line: Line, folder: Path, name: str) -> Imported:
    raise UsageError("torchtune's command line is not read: give its YAML file")


def _script(line: Line, folder: Path, name: str) -> Imported:
    """A script of one's own: what it says itself, else options of TRL or of the Trainer, by their names."""
    script = folder / line.program
    if name.endswith(".py") and script.is_file():
        found = read_script(script, line.words)
        if found is not None:
            return found
    if name.endswith(".py") and script_task(name) is not None:
        return _trl(line, folder, name)
    trl = any(word.startswith(("--use_peft", "--max_length", "--packing")) for word in line.words)
    return _options(line, folder, "trl" if trl else "hf")


def _own_words(line: Line, folder: Path, name: str) -> Imported:
    """swift sft ..., unsloth train ...: command lines with tables of their own."""
    what = line.words.pop(0) if line.words[:1] and not line.words[0].startswith("-") else ""
    trains = {"swift": ("sft", "pt", "rlhf"), "unsloth": ("train",)}[name]
    if what not in trains:
        raise UsageError(f"{name} {shorten(what, 20)} does not train: expected {name} {' or '.join(trains)}")
    if what == "rlhf":
        line.notes.append("swift rlhf: the models and rows beside the trained one's are not modeled")
    said = VARIABLES if name == "swift" else ()
    line.words += [
        f"--{each.lower()}={line.environment[each]}" for each in said if line.environment.get(each)
    ]
    return _options(line, folder, name)


Reader = Callable[[Line, Path, str], Imported]
PROGRAMS: tuple[tuple[re.Pattern[str], Reader], ...] = (
    (re.compile(r"axolotl(\..*)?"), lambda line, folder, _: _with_file(line, folder, "axolotl", ("train",))),
    (
        re.compile(r"llamafactory.*|lmf"),
        lambda line, folder, _: _with_file(line, folder, "llamafactory", ("train",)),
    ),
    (re.compile(r"swift|unsloth"), _own_words),
    (re.compile(r"trl(\.scripts.*)?"), _trl),
    (re.compile(r"tune|torchtune"), _torchtune),
    (re.compile(r".*", re.DOTALL), _script),
)
"""Which program a launch line runs, by its whole name, and what reads its words."""


def _with_file(line: Line, folder: Path, kind: str, skip: tuple[str, ...]) -> Imported:
    """A trainer whose first word is a file, with words that override it (`--micro-batch-size 2`,
    `cutoff_len=4096`).
    """
    words = [word for word in line.words if word not in skip]
    if not words or words[0].startswith("-") or "=" in words[0]:
        return _options(line, folder, kind, words)
    document = read_mapping(folder / words[0])
    imported_from = Path(words[0]).name
    options = pairs(words[1:])
    launcher = {
        key: options.pop(key)
        for key in list(options)
        if key in ("num_processes", "launcher", "main_process_port")
    }
    line.options |= launcher
    if "num_processes" in launcher:
        line.ranks = integer("--num-processes", launcher["num_processes"])
    row = recognize(document) or FORMATS[kind]
    return _read({**document, **options}, row, imported_from, folder)


def _options(
    line: Line, folder: Path, kind: str, words: list[str] | None = None, task: str | None = None
) -> Imported:
    options = pairs(line.words if words is None else words)
    config = options.pop("config", None)
    if isinstance(config, str):
        options = {**read_mapping(folder / config), **options}
    if not options:
        raise UsageError(
            f"the launch line passes no options to {shorten(line.program, 40)} that memplan recognizes"
        )
    row = FORMATS[kind]
    if task is not None:
        row = replace(row, rules=rules_of(task, row.rules), finish=_of_task(task, row.finish))
    return _read(options, row, "launch line", folder)


def _of_task(task: str, finish: Callable[[Facts, list[str]], dict[str, Any]]) -> Any:
    """The stack's `finish` where the launch line says which trainer it is."""

    def finished(facts: Facts, warnings: list[str]) -> dict[str, Any]:
        facts["task"], facts["_launched"] = task, True
        return finish(facts, warnings)

    return finished


def _read(document: Mapping[str, Any], row: Format, source: str, folder: Path) -> Imported:
    imported = read_document(document, row, source)
    for name in imported.beside:
        follow(imported, folder, name)
    return imported
