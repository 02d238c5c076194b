"""GRPO's own trainer, run on tensors without storage: transformers' generate, the scores of what it sampled,
TRL's loss and the step allocate what the trace says.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
pytest.importorskip("accelerate")
pytest.importorskip("trl")

import torch.fx.experimental._config
import trl
from accelerate import Accelerator
from datasets import Dataset
from test_trace_tasks import lora, on_meta, second
from test_trace_trainer import (
    BLOCKS,
    CONFIG,
    NUMBER,
    TOKENS,
    Windows,
    allocations,
    arguments,
    peak,
    setup_of,
    steady,
    trained,
    word_tokenizer,
)

from memplan.planner.allocator.replay import replay
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.inputs.tasks import generated
from memplan.planner.run import chunked_loss, policy
from memplan.planner.tables.components import GENERATION
from memplan.planner.tables.gpus import find_gpu
from memplan.planner.trace.device.target import target_of
from memplan.planner.trace.engine import trace
from memplan.planner.trace.events.log import Log, Mark
from memplan.planner.trace.events.record import STEPS, record

pytestmark = pytest.mark.trace

COMPLETIONS = {"completion_length": 2, "generations": 2}
"""The first sampled token and the last, which the trace runs: a longer one has more between them."""
CASES: dict[str, dict[str, Any]] = {
    "full, second model": {
        "method": "full",
        "reference": "model",
    },
    "lora, accumulated": {
        "method": "lora",
        "reference": "base",
        "gradient_accumulation": 2,
    },
    "lora, one generation for two steps": {
        "reference": "base",
        "method": "lora",
        "steps_per_generation": 2,
    },
}


SLOW = ("lora, accumulated",)


def sampled(model: Any, s: Setup, folder: Path, callback: Any) -> Any:
    """GRPO with every completion at its full length: a sampled end of text is a value, which nothing has."""
    from trl.trainer import grpo_trainer

    prompt = " a" * (TOKENS - int(s.completion_length or 0))
    steps = 1 + (s.steps_per_generation or 1)  # the last one samples
    model.generation_config.use_cache = True  # as a checkpoint's is; the outline was made to train
    with (
        patch.object(Accelerator, "prepare_model", on_meta(Accelerator.prepare_model)),
        patch.object(grpo_trainer, "create_model_from_path", lambda *args, **options: second(s)),
    ):
        return trl.GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **more: [0.0] * len(completions),
            args=trl.GRPOConfig(
                **{**arguments(s, folder), "max_steps": steps},
                num_generations=s.generations,
                steps_per_generation=s.steps_per_generation,
                max_completion_length=s.completion_length,
                beta=0.0 if s.reference == "none" else 0.04,
            ),
            train_dataset=Dataset.from_list([{"prompt": prompt}] * 64),
            processing_class=word_tokenizer(),
            peft_config=lora(model, s),
            callbacks=[callback],
        )


def steps_of(log: Log) -> list[Mark]:
    """The moments of the last step."""
    return [mark for mark in log.marks if mark.step == STEPS - 1]


@contextlib.contextmanager
def every_token_scored() -> Iterator[None]:
    """Without Triton TRL projects every token of a row, not only a completion's: so does our step here."""
    with patch.object(policy, "_completions", lambda length: chunked_loss.scores_of):
        yield


@contextlib.contextmanager
def whole_completions(length: int) -> Iterator[list[int]]:
    """What a run reads off its sampled tokens, which have no values here: that no row has ended before
    `length` tokens, and the tokens themselves. Everything that is allocated is the libraries' own.
    Yields how many events there are at the end of each generation.
    """
    from transformers.generation.utils import StopCheck

    ends_at: list[int] = []
    check, turn = StopCheck.__call__, trl.GRPOTrainer._generate_single_turn

    def ends(self: Any, unfinished: Any, tokens: Any, reached: int) -> bool:
        check(self, unfinished, tokens, reached)
        return reached >= TOKENS

    def sampled(self: Any, *args: Any, **options: Any) -> Any:
        found, scores = turn(self, *args, **options)
        heard = next(each for each in self.callback_handler.callbacks if isinstance(each, Windows))
        ends_at.append(len(heard.log.events))
        return [[3] * length for _ in found], scores

    with (
        patch.object(StopCheck, "__call__", ends),
        patch.object(trl.GRPOTrainer, "_generate_single_turn", sampled),
    ):
        yield ends_at


def theirs_and_ours(s: Setup, folder: Path) -> tuple[tuple[Log, int, int], tuple[Log, int, int], int]:
    """The events of the trainer's last step and of ours, each with where it begins and ends, and where the
    trainer's generation ends.
    """
    with (
        torch.fx.experimental._config.patch(meta_nonzero_assume_all_nonzero=True),
        whole_completions(int(s.completion_length or 0)) as ends_at,
    ):
        theirs, windows = trained(s, folder, lambda model, heard: sampled(model, s, folder, heard))
    with every_token_scored():
        ours, _ = record(CONFIG, s, target_of(s), full=True)
    return (theirs, windows.begins[-1], windows.ends[-1]), (ours, *steady(ours)), ends_at[-1]


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES]
)
def test_the_trainer_samples_scores_and_trains_so(case: str, tmp_path: Path) -> None:
    """Every allocation beyond a number to a token, and the peak but for a handful of numbers."""
    s = setup_of("trl", {"task": "grpo", **COMPLETIONS, **CASES[case]})
    theirs, ours, _ = theirs_and_ours(s, tmp_path)
    numbers = generated(s).rows * TOKENS * NUMBER
    expected, found = (Counter(allocations(*each, numbers + 1)) for each in (ours, theirs))
    assert sum(expected.values()) > 300
    assert {key: count for key, count in (found - expected).items() if key[0] == "alloc"} == {}
    assert {key: count for key, count in (expected - found).items() if key[0] == "alloc"} == {}
    assert 0 <= peak(*theirs) - peak(*ours) <= BLOCKS * 512 + 4 * numbers


def test_a_long_completion_needs_what_its_first_and_its_last_token_do(tmp_path: Path) -> None:
    """The trace runs the two and grows the cache between them; the trainer samples 24 tokens one by one."""
    s = setup_of(
        "trl",
        {
            "task": "grpo",
            "method": "lora",
            "completion_length": 24,
            "generations": 2,
            "steps_per_generation": 4,
        },
    )
    (theirs, begin, _), (ours, _, _), ends_at = theirs_and_ours(s, tmp_path)
    events, sampling = replay(ours.events), [mark for mark in steps_of(ours) if mark.moment == GENERATION]
    first, last = sampling[0].begin, sampling[-2].end  # scoring follows
    found = events.peaks(first, last)
    assert found.allocated == pytest.approx(replay(theirs.events).peaks(begin, ends_at).allocated, rel=2e-3)


def test_vllm_counts_as_its_share_while_it_is_there() -> None:
    """All along, or where it sleeps while the model is trained, in the generation alone; and the policy's own
    scores are taken, which correct for its numerics.
    """
    fields = {"task": "grpo", "method": "lora", **COMPLETIONS, "vllm_share": 0.25}
    share = int(0.25 * find_gpu("a100-40gb").usable_bytes)
    there, sleeps = (
        trace(CONFIG, setup_of("trl", {**fields, "vllm_sleeps": rests})) for rests in (False, True)
    )
    for moment in ("load", "generate", "backward"):
        row = [each for each in there.moment(moment).rows if each.bytes == share]
        assert len(row) == 1 and "vLLM" in row[0].name + row[0].why
    held = {m.moment for m in sleeps.moments if any(row.bytes == share for row in m.rows)}
    assert held == {"generate"} and sleeps.peak.moment == "generate"
    ours, _ = record(CONFIG, sleeps.setup, target_of(sleeps.setup))
    cached = [s for s in ours.storages if s.name.startswith("KV cache")]
    assert not cached and generated(sleeps.setup).old_scores


def test_grpo_is_no_supervised_step() -> None:
    """It samples first, scores completions alone, and has no gradients of other tokens' logits."""
    same = {"method": "lora", "gpu": "a100-40gb", "micro_batch": 8, "sequence_length": 64}
    sampled, supervised = (
        trace(CONFIG, resolve({"recipe": "trl", **same, **own}))
        for own in ({"task": "grpo", "completion_length": 48, "gradient_accumulation": 4}, {})
    )
    assert [m.moment for m in sampled.moments][2] == "generate"
    assert "generate" not in [m.moment for m in supervised.moments]
    cached = [row for row in sampled.moment("generate").rows if row.name.startswith("KV cache")]
    assert not cached or cached[0].component == "activations"
    assert sampled.moment("backward").allocated_bytes < supervised.moment("backward").allocated_bytes


def test_rloo_is_no_supervised_step() -> None:
    """It samples first, scores what it sampled by itself and by a second model, whose weights it holds."""
    same = {"method": "full", "gpu": "a100-40gb", "micro_batch": 4, "sequence_length": 48}
    sampled, supervised, alone = (
        trace(CONFIG, resolve({"recipe": "trl", **same, **own}))
        for own in (
            {"task": "rloo", "completion_length": 24},
            {},
            {"task": "rloo", "completion_length": 24, "reference": "none"},
        )
    )
    assert [m.moment for m in sampled.moments][2] == "generate"
    assert "generate" not in [m.moment for m in supervised.moments]
    weights = [p.moment("load").components["weights"] for p in (sampled, supervised, alone)]
    assert weights[0] == 2 * weights[1] and weights[2] == weights[1]
    assert generated(sampled.setup).old_scores and not generated(supervised.setup).old_scores
