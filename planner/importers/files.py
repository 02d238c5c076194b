"""Training files: which format one is, and what it says as Setup fields. No framework is imported, nothing in
a file is executed.

`read_training_file` is the way in; files that stand beside it (accelerate, DeepSpeed) are read too and merged
under it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memplan.planner.importers import (
    axolotl,
    axolotl_settings,
    hf,
    llamafactory,
    llamafactory_v1,
    own,
    peft,
    sharding,
    swift,
    torchtune,
    trl,
    unsloth,
)
from memplan.planner.importers.document import parse, read_text
from memplan.planner.importers.fsdp import FSDP, settle_fsdp
from memplan.planner.importers.rules import Facts, Imported, KeyReport, Rule, setup_fields, walk
from memplan.planner.importers.tasks import lacking
from memplan.planner.tables.errors import UsageError, shorten

Read = Callable[[Mapping[str, Any]], tuple[Facts, list[KeyReport], list[str]]]


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of training file: how it is recognized, its table, and what turns facts into Setup fields."""

    name: str
    title: str
    recognize: Callable[[Mapping[str, Any]], bool]
    rules: Mapping[str, Rule]
    finish: Callable[[Facts, list[str]], dict[str, Any]]
    read: Callable[..., tuple[Facts, list[KeyReport], list[str]]] | None = None
    trains: bool = True  # False: it says only how ranks share, and stands beside a training file
    reads_fsdp: bool = False  # its own table reads fsdp_config


def _has(key: str, *one_of: str) -> Callable[[Mapping[str, Any]], bool]:
    """A document with `key` and, where any are named, at least one of the others."""
    return lambda document: key in document and (not one_of or any(other in document for other in one_of))


def _torchtune(document: Mapping[str, Any]) -> bool:
    sections = (value for value in document.values() if isinstance(value, Mapping))
    return any(str(section.get("_component_", "")).startswith("torchtune.") for section in sections)


def _trl(document: Mapping[str, Any]) -> bool:
    """TRL's parser takes model, script and training arguments in one file; the handbooks built on it mix in
    keys of their own.
    """
    own = (
        "dataset_name",
        "dataset_mixture",
        "dataset_mixer",
        "use_peft",
        "datasets",
        "max_length",
        "packing",
        "torch_dtype",
        "beta",
        "attn_implementation",
        "chat_template",
    )
    return "model_name_or_path" in document and any(key in document for key in own)


def _deepspeed(document: Mapping[str, Any]) -> bool:
    return "zero_optimization" in document or (
        "train_micro_batch_size_per_gpu" in document and "output_dir" not in document
    )


FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format("memplan", "a memplan setup or document", own.recognize, own.RULES, own.finish, own.read),
        Format("peft", "PEFT adapter_config.json", _has("peft_type"), peft.LORA, peft.finish, peft.read),
        Format("torchtune", "torchtune", _torchtune, torchtune.RULES, torchtune.finish),
        Format(
            "accelerate",
            "accelerate",
            _has("distributed_type", "compute_environment"),
            sharding.ACCELERATE,
            sharding.finish_accelerate,
            trains=False,
        ),
        Format(
            "deepspeed", "DeepSpeed", _deepspeed, sharding.DEEPSPEED, sharding.finish_deepspeed, trains=False
        ),
        Format(
            "axolotl",
            "axolotl",
            _has("base_model", "micro_batch_size", "datasets", "sequence_len", "adapter"),
            axolotl.RULES,
            axolotl_settings.finish,
            reads_fsdp=True,
        ),
        Format(
            "llamafactory",
            "LLaMA-Factory",
            _has("model_name_or_path", "finetuning_type", "stage"),
            llamafactory.RULES,
            llamafactory.finish,
        ),
        Format(
            "llamafactory-v1",
            "LLaMA-Factory v1",
            llamafactory_v1.recognize,
            llamafactory_v1.RULES,
            llamafactory_v1.finish,
        ),
        Format("trl", "TRL", _trl, trl.RULES, trl.finish),
        Format("swift", "ms-swift", swift.recognize, swift.RULES, swift.finish),
        Format("unsloth", "Unsloth", unsloth.recognize, unsloth.RULES, unsloth.finish),
        Format(
            "hf",
            "transformers TrainingArguments",
            lambda d: "output_dir" in d or "per_device_train_batch_size" in d,
            hf.RULES,
            hf.finish,
        ),
    )
}
"""Every format by name, in the order in which they are recognized: the narrow before the wide."""


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file whose top is a mapping. UsageError otherwise; nothing of the file is quoted."""
    value = parse(read_text(path), path.name)
    if not isinstance(value, dict):
        kind = "empty" if value is None else "not a mapping of settings"
        raise UsageError(f"'{shorten(str(path))}' is {kind}: expected keys and values")
    return {str(key): item for key, item in value.items()}


def recognize(document: Mapping[str, Any]) -> Format | None:
    """The format of a parsed training file, None where no format's tell-tale keys are there."""
    return next((row for row in FORMATS.values() if row.recognize(document)), None)


def read_training_file(path: Path, beside: tuple[Path, ...] = ()) -> Imported:
    """A training file, with the accelerate and DeepSpeed files that stand beside it or that it names.
    UsageError where it is none.

    Markdown and Python sources are read for their calls (`snippet.py`); everything else is YAML or JSON.
    """
    if path.suffix in (".py", ".md", ".ipynb", ".txt"):
        from memplan.planner.importers.snippet import read_snippet

        return read_snippet(read_text(path), path.name)
    document = read_mapping(path)
    row = recognize(document)
    if row is None:
        titles = ", ".join(row.title for row in FORMATS.values())
        raise UsageError(f"'{shorten(str(path))}' is no training file that memplan knows: expected {titles}")
    imported = read_document(document, row, path.name)
    for name in list(imported.beside):
        follow(imported, path.parent, name)
    for other in beside:
        merge(imported, read_training_file(other))
    return imported


def read_document(document: Mapping[str, Any], row: Format, source: str) -> Imported:
    """A parsed document of a known format as Setup fields, with a report for every key."""
    facts, keys, warnings = row.read(document, walk) if row.read else walk(row.rules, document)
    model, deepspeed = facts.get("_model"), facts.get("_deepspeed")
    fields = row.finish(facts, warnings)
    keys = lacking(keys, facts.get("_lacks", {}))
    imported = Imported(
        row.name, source, facts.get("_model", model), fields, keys, warnings, list(facts.get("_notes", ()))
    )
    imported.named_attention = facts.get("_named_attention", "")
    imported.config = facts.get("_config") or {}
    imported.linear_modules = bool(facts.get("_linear"))
    imported.new_tokens, imported.row_multiple = facts.get("_new_tokens", 0), facts.get("_row_multiple", 1)
    if isinstance(deepspeed, Mapping):
        merge(imported, read_document(deepspeed, FORMATS["deepspeed"], f"{source}: deepspeed"))
    elif isinstance(deepspeed, str) and deepspeed:
        imported.beside.append(deepspeed)
    config = facts.get("_fsdp_config")
    if isinstance(config, Mapping) and not row.reads_fsdp:
        _merge_fsdp(imported, config)
    return imported


def merge(base: Imported, other: Imported) -> None:
    """Fields of `other` under those that `base` says itself; a sharding file decides ranks and sharding."""
    sharding_only = not FORMATS[other.format].trains if other.format in FORMATS else False
    for key, value in other.fields.items():
        if key not in base.fields or (sharding_only and key in ("parallel", "gpus")):
            base.fields[key] = value
    base.model = base.model or other.model
    base.keys += [
        KeyReport(f"{other.source}: {report.key}", report.status, report.note) for report in other.keys
    ]
    base.warnings += [f"{other.source}: {warning}" for warning in other.warnings]


def follow(imported: Imported, folder: Path, name: str) -> None:
    """Read the DeepSpeed file that a training file names; where it is not there, its name may tell the
    stage.
    """
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):
        inside = False
    if inside and os.path.isfile(path):  # False also for a name that no file system takes
        merge(imported, read_document(read_mapping(path), FORMATS["deepspeed"], path.name))
        return
    stage = sharding.stage_in_name(Path(name).name)
    assumed = "data parallel is assumed" if stage is None else f"ZeRO-{stage}, as its name says"
    imported.warnings.append(
        f"the DeepSpeed file {shorten(Path(name).name, 60)} is not beside this one: {assumed}"
    )
    imported.fields["parallel"] = "ddp" if stage is None else f"zero{stage}"


def _merge_fsdp(imported: Imported, config: Mapping[str, Any]) -> None:
    """TrainingArguments.fsdp_config: the same words as axolotl's, with `fsdp_` or without."""
    facts, keys, warnings = walk(FSDP | {"xla*": Rule("ignored", why="TPU only")}, config, "fsdp_config.")
    if imported.fields.get("parallel") == "fsdp":
        facts.setdefault("_strategy", ("fsdp", imported.fields.get("reshard_after_forward", True), False))
        settle_fsdp(facts, warnings, trainer=True)
        imported.fields |= setup_fields(facts)
    imported.keys += keys
    imported.warnings += warnings
