"""A Trainer over rows of different lengths (dryrun_scripts/lengths.py), dry-run; the replay of its steps."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from dryrun_hub import SMALL, layout

from memplan import api
from memplan.planner.allocator.native import OutOfMemory
from memplan.planner.formula.engine import plan, varied_run
from memplan.planner.tables.gpus import find_gpu
from memplan.profiler.dryrun.observation import Observation
from memplan.profiler.dryrun.rehearse import Rehearsal, rehearse

SCRIPT = Path(__file__).with_name("dryrun_scripts") / "lengths.py"
LLAMA: dict[str, Any] = {
    **SMALL,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
WINDOWS: dict[str, Any] = {
    **LLAMA,
    "model_type": "mistral",
    "architectures": ["MistralForCausalLM"],
    "sliding_window": 512,
}
MODELS = {"llama": LLAMA, "mistral": WINDOWS}


@dataclass(frozen=True)
class Case:
    """A run of `steps` steps: what is trained, how batches are drawn, on which GPU and by which allocator."""

    method: str
    seed: int
    sampling: str = "random"
    allocator: str = "native"
    gpu: str = "a100-80gb"
    model: str = "llama"
    steps: int = 40


@dataclass(frozen=True)
class Replayed:
    """What the replay says: the most in bytes, caches given back, steps before it ran out of memory."""

    allocated: int
    reserved: int
    releases: int
    steps: int


def dry_run(case: Case, folder: Path, python: str) -> tuple[Observation, list[tuple[int, bool]]]:
    """The dry run, and the steps that it drew: tokens of a row, and whether one of them is padding."""
    layout(folder, MODELS[case.model])
    words = (case.method, case.sampling, str(case.steps), str(case.seed))
    config = "expandable_segments:True" if case.allocator == "expandable" else ""
    with mock.patch.dict(os.environ, {"PYTORCH_ALLOC_CONF": config} if config else {}):
        done = rehearse(
            Rehearsal(
                ("python", str(SCRIPT), str(folder), *words),
                find_gpu(case.gpu),
                python=python,
                steps=0,
                random_weights=True,
            )
        )
    lines = (folder / "steps.txt").read_text().splitlines()[: case.steps]
    return done.observation, [(int(a), b == "1") for a, b in map(str.split, lines)]


def _setup(case: Case, folder: Path, length: int) -> tuple[Any, Any]:
    fields: dict[str, Any] = {"checkpointing": True} if case.method == "lora" else {}
    model, setup = api.request(
        folder / "model",
        method=case.method,
        batch=4,
        seq=length,
        padded=True,
        allocator=case.allocator,
        gpu=case.gpu,
        **fields,
    )
    return model.spec(), setup


def replayed(case: Case, folder: Path, steps: list[tuple[int, bool]]) -> Replayed:
    """The same steps by the formula, through the allocator."""
    spec, setup = _setup(case, folder, max(steps)[0])
    gpu = find_gpu(case.gpu)
    run = varied_run(spec, setup, capacity=gpu.usable_bytes - gpu.context_bytes)
    assert run is not None
    found: list[tuple[int, int]] = []
    try:
        for step in steps:
            found.append(run.step(step))
    except OutOfMemory:
        pass
    return Replayed(max(a for a, _ in found), max(b for _, b in found), run.releases, len(found))


def reserved_of_equal_steps(case: Case, folder: Path, length: int) -> int:
    """What is reserved where every step is as long as the longest, bytes."""
    return plan(*_setup(case, folder, length)).peak.reserved_bytes
