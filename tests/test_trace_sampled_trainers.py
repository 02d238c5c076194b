"""RLOO's and the distillation's own trainers, run on tensors without storage as GRPO's is
(test_trace_sampling.py): what they sample, score, compare and train allocates what the trace says.
"""

from __future__ import annotations

import contextlib
import json
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

import torch
import torch.fx.experimental._config
import trl
from accelerate import Accelerator
from datasets import Dataset
from test_trace_sampling import COMPLETIONS, every_token_scored
from test_trace_tasks import lora, on_meta, second
from test_trace_trainer import (
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
from trl.kernels import chunked_divergence
from trl.trainer import distillation_trainer, rloo_trainer

from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.tasks import generated
from memplan.planner.run.build import outline
from memplan.planner.run.built import NoWatcher
from memplan.planner.run.loading import materialize
from memplan.planner.tables.units import MIB
from memplan.planner.trace.device.target import target_of
from memplan.planner.trace.events.log import Log
from memplan.planner.trace.events.record import record

pytestmark = pytest.mark.trace

TEACHER = {**CONFIG, "hidden_size": 384, "num_hidden_layers": 3, "num_attention_heads": 6}
CASES: dict[str, dict[str, Any]] = {
    "rloo, full, second model": {"task": "rloo", "method": "full"},
    "rloo, lora, accumulated": {"task": "rloo", "method": "lora", "gradient_accumulation": 2},
    "distill, full": {"task": "distill", "method": "full"},
    "distill, lora, accumulated": {"task": "distill", "method": "lora", "gradient_accumulation": 2},
}
SLOW = ("rloo, lora, accumulated", "distill, full")


def taught(s: Setup) -> Any:
    """The teacher as the trainer loads it: a model of another size."""
    model = outline(TEACHER, s)
    materialize(model, s, torch.device("meta"), NoWatcher())
    return model.eval()


def trainer_of(model: Any, s: Setup, folder: Path, callback: Any) -> Any:
    """The task's trainer with every completion at its full length."""
    prompt = " a" * (TOKENS - int(s.completion_length or 0))
    model.generation_config.use_cache = True  # as a checkpoint's is; the outline was made to train
    said = {**arguments(s, folder), "max_completion_length": s.completion_length}
    common = {
        "model": model,
        "train_dataset": Dataset.from_list([{"prompt": prompt}] * 64),
        "processing_class": word_tokenizer(),
        "peft_config": lora(model, s),
        "callbacks": [callback],
    }
    with (
        patch.object(Accelerator, "prepare_model", on_meta(Accelerator.prepare_model)),
        patch.object(rloo_trainer, "create_model_from_path", lambda *args, **options: second(s)),
        patch.object(distillation_trainer, "create_model_from_path", lambda *args, **options: taught(s)),
    ):
        if s.task == "distill":
            return trl.DistillationTrainer(
                teacher_model="teacher", args=trl.DistillationConfig(**said), **common
            )
        return trl.RLOOTrainer(
            reward_funcs=lambda completions, **more: [0.0] * len(completions),
            args=trl.RLOOConfig(**said, num_generations=s.generations),
            **common,
        )


class Nothing:
    """A Triton kernel, which allocates nothing."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **options: None


@contextlib.contextmanager
def as_on_a_gpu(s: Setup) -> Iterator[None]:
    """No row has ended before its last token, and logits are folded as Triton does it; everything that is
    allocated is the libraries' own.
    """
    from transformers.generation.utils import StopCheck

    trainer = trl.DistillationTrainer if s.task == "distill" else trl.RLOOTrainer
    check, turn = StopCheck.__call__, trainer._generate_single_turn

    def ends(self: Any, unfinished: Any, tokens: Any, reached: int) -> bool:
        check(self, unfinished, tokens, reached)
        return reached >= TOKENS

    def sampled(self: Any, *args: Any, **options: Any) -> Any:
        return [[3] * int(s.completion_length or 0) for _ in turn(self, *args, **options)]

    kernels = ("_stats_kernel", "_jsd_kernel", "_backward_kernel")
    triton = type("triton", (), {"cdiv": staticmethod(lambda a, b: -(-a // b))})
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(StopCheck, "__call__", ends))
        stack.enter_context(patch.object(trainer, "_generate_single_turn", sampled))
        for kernel in kernels:
            stack.enter_context(patch.object(chunked_divergence, kernel, Nothing()))
        stack.enter_context(patch.object(chunked_divergence, "triton", triton, create=True))
        for module in (chunked_divergence, distillation_trainer):
            stack.enter_context(patch.object(module, "_use_triton", lambda device: True))
        stack.enter_context(torch.fx.experimental._config.patch(meta_nonzero_assume_all_nonzero=True))
        yield


def largest(log: Log, begin: int, end: int) -> int:
    """The most bytes that tensors have at once between two events, whatever blocks they are in."""
    held: dict[int, int] = {}
    now = most = 0
    for place, event in enumerate(log.events[:end]):
        if event[0] == "alloc":
            held[event[1]] = event[2]
            now += event[2]
        elif event[0] == "free":
            now -= held.pop(event[1], 0)
        most = max(most, now) if place >= begin else now
    return most


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES]
)
def test_the_trainer_samples_and_trains_so(case: str, tmp_path: Path) -> None:
    """Every allocation beyond a number to a token, and the peak but for a handful of numbers."""
    named: dict[str, Any] = {**COMPLETIONS, **CASES[case]}
    if named["task"] == "distill":
        (tmp_path / "config.json").write_text(json.dumps(TEACHER))
        del named["generations"]
        named["teacher"] = str(tmp_path / "config.json")
    s = setup_of("trl", named)
    with as_on_a_gpu(s):
        theirs, windows = trained(s, tmp_path, lambda model, heard: trainer_of(model, s, tmp_path, heard))
    with every_token_scored():
        ours, _ = record(CONFIG, s, target_of(s), full=True)
    numbers = generated(s).rows * TOKENS * NUMBER
    sides = (ours, *steady(ours)), (theirs, windows.begins[-1], windows.ends[-1])
    expected, found = (Counter(allocations(*each, numbers + 1)) for each in sides)
    assert sum(expected.values()) > 300
    assert {key: count for key, count in (found - expected).items() if key[0] == "alloc"} == {}
    assert {key: count for key, count in (expected - found).items() if key[0] == "alloc"} == {}
    assert 0 <= largest(*sides[1]) - largest(*sides[0]) <= BLOCKS * 512 + 4 * numbers
    # a block of up to 1 MiB more than was asked for is not split, and single numbers decide which one is free
    assert abs(peak(*sides[1]) - peak(*sides[0])) <= MIB
