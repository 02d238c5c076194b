"""PPO: TRL's own trainer, where a release that has it is installed, run on tensors without storage allocates
what the trace says; its four models, its rollout and its step are those of no supervised training.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
pytest.importorskip("accelerate")
pytest.importorskip("trl")

import torch
from accelerate import Accelerator
from datasets import Dataset
from test_trace_tasks import lora, on_meta, second
from test_trace_trainer import (
    BATCH,
    BLOCKS,
    CONFIG,
    NUMBER,
    TOKENS,
    allocations,
    arguments,
    peak,
    setup_of,
    steady,
    trained,
    word_tokenizer,
)

from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.inputs.tasks import generated
from memplan.planner.run.built import NoWatcher
from memplan.planner.run.loading import materialize
from memplan.planner.run.model import skeleton
from memplan.planner.tables.errors import UsageError
from memplan.planner.trace.device.target import target_of
from memplan.planner.trace.engine import trace
from memplan.planner.trace.events.record import record

pytestmark = pytest.mark.trace

CASES: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora, accumulated": {"method": "lora", "gradient_accumulation": 2},
    "lora, mini-batches": {"method": "lora", "gradient_accumulation": 2, "num_mini_batches": 2},
}


def judge(s: Setup) -> Any:
    model: Any = skeleton(CONFIG, s.weight_dtype, "sdpa", "pooled", 1)
    materialize(model, s, torch.device("meta"), NoWatcher())
    model.config.use_cache = True
    return model.eval()


def rolled_out(model: Any, s: Setup, folder: Path, callback: Any) -> Any:
    from trl.experimental import ppo

    reference = second(s)
    model.generation_config.use_cache = True
    for each in filter(None, (model, reference)):
        each.config.use_cache = True  # as a checkpoint's is; the outline was made to train
    fields = {**arguments(s, folder), "logging_strategy": "steps"}
    fields.pop("max_steps")
    rows = s.micro_batch * s.gradient_accumulation
    device = property(lambda accelerator: torch.device("meta"))
    with (
        patch.object(Accelerator, "prepare_model", on_meta(Accelerator.prepare_model)),
        patch.object(Accelerator, "device", device),
    ):
        return ppo.PPOTrainer(
            model=model,
            ref_model=reference,
            reward_model=judge(s),
            value_model=judge(s),
            args=ppo.PPOConfig(
                **fields,
                response_length=s.completion_length,
                total_episodes=3 * rows,
                num_mini_batches=s.num_mini_batches or 1,
                num_ppo_epochs=1,
            ),
            train_dataset=Dataset.from_list(
                [{"input_ids": [3] * (TOKENS - int(s.completion_length or 0))}] * 64
            ),
            processing_class=word_tokenizer(),
            peft_config=lora(model, s),
            callbacks=[callback],
        )


@contextlib.contextmanager
def without_values() -> Any:
    """What a run reads off tensors, which have no values here: no row has ended, and no mask is empty."""
    from transformers.generation.utils import StopCheck
    from trl.experimental.ppo import ppo_trainer

    check, spread = StopCheck.__call__, ppo_trainer.masked_var

    def ends(self: Any, unfinished: Any, tokens: Any, reached: int) -> bool:
        check(self, unfinished, tokens, reached)
        return reached >= TOKENS

    with (
        patch("test_trace_trainer.tiles_as_triton_folds_them", contextlib.nullcontext),  # it has none
        patch.object(StopCheck, "__call__", ends),
        patch.object(ppo_trainer, "masked_var", lambda values, mask: spread(values, mask, unbiased=False)),
    ):
        yield


@pytest.mark.skipif(
    importlib.util.find_spec("trl.experimental.ppo") is None, reason="this trl has no PPOTrainer (1.12 has)"
)
@pytest.mark.parametrize("case", CASES)
def test_the_trainer_samples_judges_and_trains_so(case: str, tmp_path: Path) -> None:
    """Every allocation beyond a number to a token, and the peak but for a handful of numbers."""
    s = setup_of("trl", {"task": "ppo", "completion_length": 2, "checkpointing": "none", **CASES[case]})
    with without_values():
        theirs, windows = trained(s, tmp_path, lambda model, heard: rolled_out(model, s, tmp_path, heard))
    ours, _ = record(CONFIG, s, target_of(s), full=True)
    numbers = generated(s).rows * TOKENS * NUMBER
    begin, end = windows.ends[-2:]
    expected = Counter(allocations(ours, *steady(ours), numbers + 1))
    found = Counter(allocations(theirs, begin, end, numbers + 1))
    assert sum(expected.values()) > 300
    assert {key: count for key, count in (found - expected).items() if key[0] == "alloc"} == {}
    assert {key: count for key, count in (expected - found).items() if key[0] == "alloc"} == {}
    assert 0 <= peak(theirs, begin, end) - peak(ours, *steady(ours)) <= BLOCKS * 512 + 16 * numbers


def test_ppo_is_no_supervised_step() -> None:
    """Four models, of which two are trained; completions are sampled with every token's scores kept."""
    same = {"recipe": "trl", "gpu": "a100-40gb", "micro_batch": BATCH, "sequence_length": 48}
    own = {**same, "task": "ppo", "completion_length": 24}
    sampled, supervised = (trace(CONFIG, resolve({**fields, "method": "full"})) for fields in (own, same))
    assert [m.moment for m in sampled.moments][2] == "generate"
    names = {row.name.split(".")[0] for row in sampled.moment("load").rows if row.component == "weights"}
    assert {name.partition(":")[0] for name in names} == {
        *("policy", "value_model", "reference model", "reward model")
    }
    weights = [each.moment("load").components["weights"] for each in (sampled, supervised)]
    assert 3 * weights[1] < weights[0] <= 4 * weights[1]
    states = [each.moment("backward").components["optimizer_states"] for each in (sampled, supervised)]
    assert 1.5 * states[1] < states[0] <= 2 * states[1]
    scores = BATCH * 24 * CONFIG["vocab_size"] * 4
    assert any(
        row.name == "sampled batch.logits" and row.bytes == scores for row in sampled.moment("forward").rows
    )
    adapted = trace(CONFIG, resolve({**own, "method": "lora"}))
    assert adapted.setup.reference == "base"
    assert adapted.moment("load").components["weights"] < weights[0]


def test_models_of_the_policys_kind_are_cut_as_it_is() -> None:
    """A few layers of each of the four stand for all, to the byte."""
    deep = {**CONFIG, "num_hidden_layers": 9}
    s = setup_of("trl", {"task": "ppo", "method": "full", "completion_length": 2})
    few, all_layers = (trace(deep, s, full=full) for full in (False, True))
    assert few.extra["traced_layers"] and not all_layers.extra["traced_layers"]
    assert few.peak == all_layers.peak
    assert [m.allocated_bytes for m in few.moments] == [m.allocated_bytes for m in all_layers.moments]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_mini_batches": 3}, "num_mini_batches 3 does not divide the 8 rows"),
        ({"method": "qlora"}, "no rule for nf4 weights"),
        ({"checkpointing": "non_reentrant"}, "PPOTrainer never switches it on"),
        ({"reference": "none"}, "always has a reference"),
        ({"top_k": 5}, "top_k 5 contradicts task 'ppo'"),
        ({"task": "grpo", "value_model": "gpt2"}, "which trains no value model"),
    ],
)
def test_what_ppo_excludes_is_said(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve({"recipe": "trl", "task": "ppo", **fields})


def test_a_value_model_is_of_the_reward_models_size() -> None:
    s = resolve({"recipe": "trl", "task": "ppo", "reward_model": "pythia-160m"})
    assert s.value_model == "pythia-160m" and s.load == "random"
    assert resolve({"task": "ppo", "recipe": "trl"}).value_model is None  # the policy's own


LINE = (
    "accelerate launch --mixed_precision bf16 scripts/ppo/ppo.py --sft_model_path EleutherAI/pythia-1b "
    "--reward_model_path EleutherAI/pythia-410m --model_name_or_path a/b --per_device_train_batch_size 4 "
    "--gradient_accumulation_steps 16 --local_rollout_forward_batch_size 1 --num_mini_batches 2 "
    "--missing_eos_penalty 1.0 --total_episodes 10000 --gradient_checkpointing true"
)
SCRIPT = """
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import PPOConfig, PPOTrainer
value_model = AutoModelForSequenceClassification.from_pretrained("EleutherAI/pythia-410m", num_labels=1)
reward_model = AutoModelForSequenceClassification.from_pretrained("EleutherAI/pythia-160m", num_labels=1)
policy = AutoModelForCausalLM.from_pretrained("EleutherAI/pythia-1b")
args = PPOConfig(output_dir="o", per_device_train_batch_size=4, response_length=100, bf16=True)
trainer = PPOTrainer(
    args=args, processing_class=None, model=policy, ref_model=None, reward_model=REWARD,
    value_model=value_model, train_dataset=data, eval_dataset=data)
"""


def test_launch_lines_and_scripts_name_the_models(tmp_path: Path) -> None:
    from memplan.planner.importers.anyfile import read_file
    from memplan.planner.importers.launch import read_launch

    found = read_launch(LINE.split())
    s = resolve(imported=found.fields)
    assert (found.model, s.reward_model, s.value_model) == (
        "EleutherAI/pythia-1b",
        *("EleutherAI/pythia-410m",) * 2,
    )
    assert (s.task, s.autocast, s.rollout_batch, s.num_mini_batches, s.eval_batch) == (
        "ppo",
        "bfloat16",
        1,
        2,
        8,
    )
    assert not found.not_modelled()
    (tmp_path / "mine.py").write_text(SCRIPT.replace("REWARD", "reward_model"))
    found = read_file(tmp_path / "mine.py")
    s = resolve(imported=found.fields)
    assert (found.model, s.reward_model, s.value_model, s.completion_length, s.autocast) == (
        *("EleutherAI/pythia-1b", "EleutherAI/pythia-160m", "EleutherAI/pythia-410m"),
        *(100, "none"),
    )
    assert not found.not_modelled() and s.eval_batch == 8
    (tmp_path / "mine.py").write_text(SCRIPT.replace("REWARD", "Mine()"))
    assert "reward_model" in read_file(tmp_path / "mine.py").not_modelled()[0]
