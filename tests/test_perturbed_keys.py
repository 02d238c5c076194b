"""A key that an importer calls ignored moves no memory: each is given another value than its default, and the
library's own trainer runs two steps on tensors without storage. The libraries that are not here ran elsewhere
(`benchmarks/perturbed_keys.py`); what no run showed rests on a file that was read or on a reason (`JUDGED`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("accelerate")
pytest.importorskip("trl")

import transformers
import trl
from key_judgments import JUDGED
from test_trace_trainer import (
    BATCH,
    BLOCKS,
    NUMBER,
    TOKENS,
    adapted,
    allocations,
    arguments,
    peak,
    rows,
    setup_of,
    trained,
    word_tokenizer,
)

from memplan.planner.importers import hf
from memplan.planner.importers import trl as trl_table
from memplan.planner.importers.files import FORMATS
from memplan.planner.importers.rules import find_rule
from memplan.render import format_docs

pytestmark = pytest.mark.trace

ROOT = Path(__file__).resolve().parent.parent
FAST = 2  # keys of a run in continuous integration; all of them are slow

VALUES: dict[str, Any] = {
    "accelerator_config": {"split_batches": False, "dispatch_batches": False},
    "chat_template_path": None,
    "data_seed": 7,
    "dataloader_multiprocessing_context": "spawn",
    "dataloader_num_workers": 1,
    "dataloader_persistent_workers": False,
    "dataset_config": "x",
    "dataset_name": "x",
    "dataset_num_proc": 2,
    "ddp_backend": "gloo",
    "ddp_bucket_cap_mb": 5,
    "ddp_find_unused_parameters": True,
    "ddp_broadcast_buffers": True,
    "ddp_static_graph": True,
    "debug": "underflow_overflow",
    "eos_token": "</s>",
    "eval_steps": 3,
    "greater_is_better": False,
    "hub_model_id": "a/b",
    "hub_revision": "x",
    "hub_strategy": "end",
    "hub_token": "x",
    "include_for_metrics": ["loss"],
    "include_num_input_tokens_seen": "all",
    "label_names": ["labels"],
    "log_level": "error",
    "log_level_replica": "error",
    "logging_strategy": "epoch",
    "lr_scheduler_kwargs": {},
    "lr_scheduler_type": "cosine",
    "max_steps": 3,
    "metric_for_best_model": "loss",
    "output_dir": "elsewhere",
    "pad_token": "</s>",
    "report_to": "none",
    "run_name": "x",
    "save_steps": 3,
    "save_strategy": "best",
    "save_total_limit": 2,
    "torch_empty_cache_steps": 1,
    "warmup_steps": 2,
}
"""Values for keys whose default says too little of what they may be."""

NO_PREPARATION = frozenset(  # of batches on the host, of scripts before the trainer
    word
    for line in (
        "chat_template_path dataset_config dataset_kwargs dataset_name dataset_streaming dataset_test_split",
        "dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers",
        "dataloader_pin_memory dataloader_prefetch_factor dataset_train_split model_revision lora_task_type",
        "ignore_bias_buffers router_aux_loss_coef trust_remote_code assistant_only_loss",
    )
    for word in line.split()
)
NO_STEP = frozenset(  # before or after the steps, of several ranks, of a GPU
    word
    for line in (
        "ddp_backend do_predict enable_jit_checkpoint eval_delay eval_on_start hub_always_push tf32",
        "ignore_data_skip load_best_model_at_end local_rank log_on_each_node push_to_hub save_strategy",
        "resume_from_checkpoint",
    )
    for word in line.split()
)
"""Fields that a step without storage cannot show: the results have its run on a CPU, or what was read."""


def ignored_fields(table: Any, *classes: type) -> list[str]:
    """The fields of a library's configuration that a table ignores, and that a run can show."""
    names = {field.name: None for each in classes for field in dataclasses.fields(each)}
    found = {name: find_rule(table, name) for name in names}
    return [
        name
        for name, rule in found.items()
        if rule and rule.status == "ignored" and name not in NO_PREPARATION | NO_STEP
    ]


TRAINING = ignored_fields(hf.RULES, transformers.TrainingArguments)
SUPERVISED = [name for name in ignored_fields(trl_table.RULES, trl.SFTConfig) if name not in TRAINING]
RUNS = [("hf", name) for name in TRAINING] + [("trl", name) for name in SUPERVISED]


def other_value(cls: type, name: str) -> Any:
    """A value that is not the default."""
    if name in VALUES:
        return VALUES[name]
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
    if isinstance(default, bool) or "bool" in str(field.type):
        return not default
    if isinstance(default, (int, float)):
        return type(default)(2 * default + 1) if isinstance(default, int) else default / 2 + 0.05
    assert "float" in str(field.type) or "str" in str(field.type) or default is None, name
    return 0.1 if "float" in str(field.type) else 3 if "int" in str(field.type) else "x"


def events_of(recipe: str, folder: Path, **changed: Any) -> tuple[Counter[tuple[str, int]], int]:
    """What the recipe's trainer allocates in its last step with some arguments changed: tensors larger than a
    number for each token, and the peak in bytes.
    """
    s = setup_of(recipe, {"method": "lora"})

    def make(model: Any, windows: Any) -> Any:
        common = {**arguments(s, folder), **changed}
        if recipe == "hf":
            args = transformers.TrainingArguments(**common)
            collator = transformers.default_data_collator
            return transformers.Trainer(
                adapted(model, s), args, collator, train_dataset=rows(), callbacks=[windows]
            )
        from datasets import Dataset

        own = {"max_length": TOKENS, "dataset_kwargs": {"skip_prepare_dataset": True}}
        return trl.SFTTrainer(
            adapted(model, s),
            trl.SFTConfig(**{**own, **common}),
            train_dataset=Dataset.from_list(rows()),
            processing_class=word_tokenizer(),
            callbacks=[windows],
        )

    log, windows = trained(s, folder, make)
    begin, end = windows.begins[-1], windows.ends[-1]
    found = allocations(log, begin, end, BATCH * TOKENS * NUMBER + 1)
    return Counter(found), peak(log, begin, end)


@cache
def plain(recipe: str, folder: Path) -> tuple[Counter[tuple[str, int]], int]:
    return events_of(recipe, folder)


def moves(recipe: str, name: str, folder: Path) -> bool:
    """Whether a step with another value of the key allocates anything else."""
    cls = transformers.TrainingArguments if recipe == "hf" else trl.SFTConfig
    value = other_value(cls, name)
    if name == "output_dir":
        value = str(folder / value)
    tensors, most = events_of(recipe, folder, **{name: value})
    expected, least = plain(recipe, folder.parent)
    return tensors != expected or abs(most - least) > BLOCKS * 512


@pytest.mark.parametrize(("recipe", "name"), random.Random(14).sample(RUNS, FAST))
def test_an_ignored_key_moves_nothing_in_its_librarys_trainer(recipe: str, name: str, tmp_path: Path) -> None:
    assert not moves(recipe, name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "name"), RUNS)
def test_no_ignored_key_moves_anything_in_its_librarys_trainer(
    recipe: str, name: str, tmp_path: Path
) -> None:
    assert not moves(recipe, name, tmp_path)


@pytest.mark.parametrize("name", ["neftune_noise_alpha", "label_smoothing_factor"])
def test_a_key_that_moves_memory_is_seen_and_not_ignored(name: str, tmp_path: Path) -> None:
    assert moves("hf", name, tmp_path)
    assert find_rule(hf.RULES, name).status == "not_modelled"  # type: ignore[union-attr]


RESULTS = json.loads(format_docs.RESULTS.read_text(encoding="utf-8"))
HERE = {"hf": "transformers", "trl": "trl", "peft": "peft"}
"""Formats whose library the tests have."""


@pytest.mark.parametrize("name", FORMATS)
def test_every_ignored_key_is_judged(name: str) -> None:
    """By a run or a file that the results have, or by a reason of the list: never by both, nor by neither."""
    said = {key for keys in JUDGED.get(name, {}).values() for key in keys.split()}
    ways = format_docs.judgments()
    assert {key for (each, key), way in ways.items() if each == name and way == "reason"} == said


def test_no_key_that_moved_memory_is_ignored() -> None:
    moved = 0
    for result in RESULTS.values():
        for row in result["keys"]:
            rule = format_docs.rule_at(FORMATS[result["format"]].rules, row["name"])
            assert row["how"] != "moved" or (rule and rule.status != "ignored"), row
            moved += row["how"] == "moved"
    assert moved, "a search that finds nothing finds nothing out"


def test_a_row_says_what_was_tried_and_where() -> None:
    for result in RESULTS.values():
        assert result["version"]
        for row in result["keys"]:
            assert ("value" in row) if row["how"] in ("run", "moved") else row["note"], row
            assert row["how"] != "read" or re.search(r"\d+\.\d+", row["note"]), row


def again(name: str, *more: str) -> subprocess.CompletedProcess[str]:
    """The command, run against the library that is here; nothing is written."""
    command = [sys.executable, "benchmarks/perturbed_keys.py", name, "--check", *more]
    where = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=where, capture_output=True, text=True)


def test_a_key_is_judged_again_as_the_file_has_it() -> None:
    rows = next(result for result in RESULTS.values() if result["format"] == "peft")["keys"]
    names = random.Random(14).sample([row["name"] for row in rows if row["how"] == "run"], FAST)
    done = again("peft", "--only", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f'"name": "{name}", ' in done.stdout for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("name", HERE)
def test_all_keys_are_judged_again_as_the_file_has_them(name: str) -> None:
    done = again(name)
    assert done.returncode == 0, done.stdout + done.stderr
