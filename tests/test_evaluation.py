"""An evaluation step: both engines agree on what it holds, it comes after training and moves nothing of that,
and files that evaluate have one. tests/test_dryrun_scripts.py has the Trainer's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import memplan
from memplan.planner.answers.fit.gpus import share
from memplan.planner.answers.parts import deciding, headline
from memplan.planner.importers.files import read_training_file
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.prediction import Prediction
from memplan.planner.tables.components import COMPONENTS, EVALUATION
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import find_gpu

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 2003,
    "tie_word_embeddings": False,
}
SIZES: dict[str, Any] = {"micro_batch": 2, "sequence_length": 256, "eval_batch": 8}


def predicted(engine: str, **fields: Any) -> Prediction:
    return memplan.plan(CONFIG, engine=engine, **SIZES | fields)


def parts(found: Prediction) -> dict[str, int]:
    rows = found.moment(EVALUATION).rows
    return {name: sum(row.bytes for row in rows if row.component == name) for name in COMPONENTS}


@pytest.mark.trace
@pytest.mark.parametrize(
    "fields",
    [
        {"method": "full", "recipe": "hf"},
        {"method": "full", "recipe": "raw"},
        {"method": "full", "recipe": "hf", "weight_dtype": "float32", "autocast": "bfloat16"},
        {"method": "qlora", "recipe": "trl", "checkpointing": "reentrant"},
        {"method": "lora", "recipe": "hf", "padded": True, "attention": "eager"},
        {"method": "lora", "recipe": "hf", "gradient_accumulation": 4},
        {"method": "lora", "recipe": "trl", "loss": "chunked"},
        {"method": "lora", "recipe": "hf", "loss": "fused"},
        {"method": "lora", "recipe": "trl", "packed_documents": 4},
        {"method": "lora", "recipe": "trl", "task": "dpo"},
        {"method": "full", "recipe": "hf", "task": "classify"},
        {"method": "prefix-tuning", "recipe": "hf"},
        {"method": "dora", "recipe": "hf", "eval_batch": 1},
        {"method": "full", "recipe": "hf", "eval_kept": 40},
        {"method": "lora", "recipe": "hf", "eval_kept": 8},
        {"method": "lora", "recipe": "raw", "eval_kept": 24, "autocast": "none"},
        {"method": "full", "recipe": "hf", "eval_kept": 64, "task": "classify"},
        {"method": "lora", "recipe": "hf", "gpus": 2, "parallel": "ddp"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_both_engines_hold_the_same(fields: dict[str, Any]) -> None:
    formula, trace = (parts(predicted(engine, **fields)) for engine in ("formula", "trace"))
    whole = sum(trace.values())
    assert all(abs(formula[name] - trace[name]) <= 1e-3 * whole for name in COMPONENTS), (formula, trace)


def test_the_trainer_frees_its_gradients_before_a_plain_loop_after() -> None:
    assert parts(predicted("formula", method="full", recipe="hf"))["gradients"] == 0
    assert parts(predicted("formula", method="full", recipe="raw"))["gradients"] > 0


@pytest.mark.parametrize("engine", ["formula", pytest.param("trace", marks=pytest.mark.trace)])
def test_training_is_what_it_was(engine: str) -> None:
    """The evaluation follows the steady step: nothing of training moves, reserved bytes included."""
    found, without = (
        predicted(engine, method="lora", recipe="hf", checkpointing="reentrant", eval_batch=rows)
        for rows in (32, None)
    )
    assert found.step_peak == without.step_peak
    assert found.moments[:-1] == without.moments and found.moments[-1].moment == EVALUATION
    assert found.peak.moment == EVALUATION and found.peak.reserved_bytes > without.peak.reserved_bytes


def test_it_grows_with_its_own_batch_alone() -> None:
    sizes = [
        sum(parts(predicted("formula", method="lora", recipe="hf", **more)).values())
        for more in ({}, {"eval_batch": 16}, {"micro_batch": 4})
    ]
    logits = 8 * 256 * 2003 * 4
    assert sizes[1] - sizes[0] >= 2 * logits  # fp32 logits and their log-softmax
    assert 0 < sizes[2] - sizes[0] < logits / 100  # the batch that training holds


def test_kept_logits_are_there_twice_while_they_are_joined() -> None:
    """With compute_metrics: those of all batches, those before the last one, and the last one's."""
    kept = predicted("formula", method="lora", recipe="hf", eval_kept=512)
    alone = predicted("formula", method="lora", recipe="hf", eval_kept=256)
    row = 256 * 2003 * 4
    grows = kept.moment(EVALUATION).allocated_bytes - alone.moment(EVALUATION).allocated_bytes
    assert grows == pytest.approx(2 * 256 * row, rel=1e-2)
    rows = {item.name: item.shape[0] for item in kept.moment(EVALUATION).rows if item.shape[2:] == (2003,)}
    assert max(rows.values()) == 512
    assert kept.peak.moment == EVALUATION and kept.step_peak == alone.step_peak


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"eval_kept": 8}, "--set eval_batch=8"),
        ({"eval_kept": 4, "eval_batch": 8}, "less than one batch"),
        ({"eval_kept": 8, "eval_batch": 8, "loss": "chunked"}, "use --loss full"),
        ({"eval_kept": 8, "eval_batch": 8, "task": "reward"}, "no rule for task 'reward'"),
    ],
)
def test_what_keeps_no_logits(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve(fields)


def test_what_trains_nothing_has_none() -> None:
    with pytest.raises(UsageError, match="eval_batch 8: method 'inference'"):
        resolve({"method": "inference", "eval_batch": 8})


@pytest.mark.parametrize("parallel", ["ddp", "fsdp", "zero1", "zero2", "zero3"])
def test_ranks_hold_their_share_and_the_logits_of_all(parallel: str) -> None:
    """Beside what a rank keeps: no gradient, units whole as they come, and kept logits of every rank."""
    alone = predicted("formula", method="full", recipe="hf", eval_kept=64)
    ranks = predicted("formula", method="full", recipe="hf", eval_kept=64, parallel=parallel, gpus=4)
    held, found = (each.moment(EVALUATION).components for each in (alone, ranks))
    assert found["optimizer_states"] <= held["optimizer_states"]
    assert parallel == "ddp" or found["optimizer_states"] < held["optimizer_states"]
    gathered = [row for row in ranks.moment(EVALUATION).rows if row.name.endswith("logits of all ranks")]
    assert [row.shape for row in gathered] == [(4 * 8, 256, 2003)]
    kept = [row for row in ranks.moment(EVALUATION).rows if row.name.endswith("kept logits")]
    assert [row.shape[0] for row in kept] == [64]
    assert found["gradients"] == ranks.moment("load").components["gradients"]  # ZeRO-3's flat buffer


def test_what_fsdp_leaves_gathered_is_there_in_the_next_batch() -> None:
    """Head and final norm do not reshard after a forward (torch 2.14 _fsdp_state.py): while the layers of the
    second batch run they are whole.
    """
    found = predicted("formula", method="full", recipe="hf", parallel="fsdp", gpus=4, sequence_length=2)
    rows = {
        row.name.split()[-1]: row.bytes for row in found.moment(EVALUATION).rows if "gathered" in row.name
    }
    assert rows["lm_head.weight"] == 2 * 256 * 2004  # bfloat16, padded to a multiple of the ranks


def test_fit_counts_the_evaluation_of_ranks() -> None:
    spec, gpu = find("llama-3.1-8b").spec(), find_gpu("rtx-4090")
    asked = {"method": "lora", "recipe": "hf", "sequence_length": 2048}
    counts = [
        share(spec, resolve({**asked, **more}), gpu) for more in ({}, {"eval_batch": 1}, {"eval_batch": 64})
    ]
    few, more, never = (each.count for each in counts if each is not None)
    assert few is not None and more is not None and more >= few and never is None


def test_training_fits_the_evaluation_does_not() -> None:
    fields = {"method": "lora", "recipe": "hf", "checkpointing": "reentrant", "gpu": "rtx-4090"}
    found = memplan.plan("llama-3.1-8b", eval_batch=8, **fields).gpus[0]
    assert found.verdict == "no" and found.parts is not None
    assert (found.parts.step, found.parts.decided_by) == ("fits", "evaluate")
    assert found.parts.after == {EVALUATION: ("no", found.needed_bytes)}
    assert headline(found.parts) == "training fits, the evaluation does not"
    assert deciding(found.parts).startswith("the evaluation; the training step alone, ")
    assert memplan.plan("llama-3.1-8b", **fields).gpus[0].verdict == "fits"


@pytest.mark.parametrize(
    ("said", "rows"),
    [
        ("eval_strategy: steps", 8),
        ("eval_strategy: epoch\nper_device_eval_batch_size: 2", 2),
        ("eval_strategy: 'no'\nper_device_eval_batch_size: 2", None),
        ("per_device_eval_batch_size: 2", None),
    ],
)
def test_a_file_that_evaluates_has_the_trainers_batch(said: str, rows: int | None, tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(f"model_name_or_path: llama-7b\nstage: sft\nfinetuning_type: lora\nbf16: true\n{said}\n")
    assert read_training_file(file).fields.get("eval_batch") == rows
    file.write_text(file.read_text() + "predict_with_generate: true\n")
    assert any("a KV cache" in what for what in read_training_file(file).not_modelled())
