"""A key that an importer calls ignored moves no memory: each is given another value than its default, and the
library's own trainer runs two steps on tensors without storage. What no trainer here reads is judged by the
source of its stack (`JUDGED`); a key that is neither is an error.
"""

from __future__ import annotations

import dataclasses
import random
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

WITHOUT_A_RUN: dict[str, str] = {
    "hub_always_push": "trainer.py _push_from_checkpoint",
    "push_to_hub": "trainer.py init_hf_repo: it needs a network; memory on the host",
    "ignore_data_skip": "trainer.py: read where a run is resumed",
    "resume_from_checkpoint": "trainer.py: read by scripts, before training",
    "do_predict": "training_args.py: read by scripts",
    "load_best_model_at_end": "trainer.py _load_best_model: after training, into the same tensors",
    "eval_on_start": "trainer.py: an evaluation before the first step, which `eval_strategy` counts",
    "local_rank": "training_args.py: which process this is",
    "ddp_backend": "training_args.py: the collective library of several ranks",
    "debug": "debug_utils.py: hooks that read activations and keep numbers",
    "assistant_only_loss": "trl trainer/sft_trainer.py: which labels are -100; it wants conversations",
    "dataset_kwargs": "trl trainer/sft_trainer.py: how rows are made",
    "router_aux_loss_coef": "trl trainer/sft_trainer.py: a factor; refused of a dense model",
    "tf32": "training_args.py: the precision of products; a CPU refuses it",
    "eval_delay": "trainer_callback.py: when an evaluation runs",
    "save_strategy": "trainer_callback.py: when a checkpoint is written",
    "enable_jit_checkpoint": "trainer_jit_checkpoint.py: a signal handler that saves",
    "dataloader_multiprocessing_context": "trainer.py: how worker processes start",
    "dataloader_num_workers": "trainer.py: worker processes on the host",
    "dataloader_prefetch_factor": "trainer.py: batches that workers hold on the host",
    "dataloader_persistent_workers": "trainer.py: worker processes on the host",
    "dataloader_pin_memory": "trainer.py: memory on the host; it needs a GPU",
    "chat_template_path": "trl trainer/sft_trainer.py: reads a template's file",
    "log_on_each_node": "trainer.py: read on several nodes",
    "dataset_streaming": "trl scripts/sft.py, before the trainer",
    "dataset_config": "trl scripts/sft.py, before the trainer",
    "dataset_name": "trl scripts/sft.py, before the trainer",
    "dataset_test_split": "trl scripts/sft.py, before the trainer",
    "dataset_train_split": "trl scripts/sft.py, before the trainer",
    "ignore_bias_buffers": "trl scripts/sft.py: buffers of booleans that DDP leaves alone",
    "lora_task_type": "trl trainer/model_config.py: the adapter's class",
    "model_revision": "trl scripts/sft.py: which commit is loaded",
    "trust_remote_code": "trl scripts/sft.py",
}
"""Keys that a step without storage cannot show, with what was read (transformers 5.23, trl 1.16)."""


def ignored_fields(table: Any, *classes: type) -> list[str]:
    """The fields of a library's configuration that a table ignores, and that a run can show."""
    names = {field.name: None for each in classes for field in dataclasses.fields(each)}
    found = {name: find_rule(table, name) for name in names}
    return [
        name
        for name, rule in found.items()
        if rule and rule.status == "ignored" and name not in WITHOUT_A_RUN
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


def every_ignored(rules: Any) -> list[tuple[str, str]]:
    """(key, reason) of each ignored key of a table and of the tables inside it."""
    inner = [pair for rule in rules.values() if rule.inner for pair in every_ignored(rule.inner)]
    return [(key, rule.why) for key, rule in rules.items() if rule.status == "ignored"] + inner


def without_a_run(name: str) -> list[tuple[str, str]]:
    """A format's ignored keys that are no field of a configuration that a run here is given."""
    known = {*TRAINING, *SUPERVISED, *WITHOUT_A_RUN}
    return [(key, why) for key, why in every_ignored(FORMATS[name].rules) if key not in known]


def judged() -> dict[str, int]:
    """How many ignored keys of all tables are judged in which way."""
    keys = [key for row in FORMATS.values() for key, _ in every_ignored(row.rules)]
    run = sum(key in {*TRAINING, *SUPERVISED} for key in keys)
    return {"all": len(keys), "run": run, "read": len(keys) - run, "fields": len(RUNS)}


@pytest.mark.parametrize("name", FORMATS)
def test_every_ignored_key_is_judged(name: str) -> None:
    said = {(key, why) for why, keys in JUDGED.get(name, {}).items() for key in keys.split()}
    assert set(without_a_run(name)) == said


def test_the_page_of_formats_counts_how_keys_were_judged() -> None:
    assert "{all} ignored keys of all tables: {run}".format(**judged()) in format_docs.page()
    assert "({fields} fields)".format(**judged()) in format_docs.page()
