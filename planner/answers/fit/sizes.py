"""Where no model is named: what models of every size need, method by method, on one GPU or on none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from memplan.planner.answers.fit.frontier import Room, Structure, need
from memplan.planner.answers.fit.suggest import under
from memplan.planner.answers.verdict import Word, uncounted_of, withheld
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu

SCHEMA = "memplan.sizes/1"
SIZES = ("llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "qwen3-14b", "qwen3-32b", "llama-3.1-70b")
"""A well-known model of the catalog for each size that people fine-tune, which stands for that size."""
METHODS = ("full", "lora", "qlora")


@dataclass(frozen=True, slots=True)
class SizeFit:
    """One model under one method: device bytes, and on a GPU the verdict and the largest micro-batch that
    fits (None where a micro-batch of 1 does not). `error`: why the setup means nothing for it.
    """

    model: str
    parameters: int
    method: str
    setup: Setup | None = None
    device_bytes: int = 0
    verdict: Word | None = None
    largest_batch: int | None = None
    error: str | None = None

    def to_document(self) -> dict[str, Any]:
        """One model and method as the JSON of `fit` without a model has it."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "method": self.method,
            "device_bytes": self.device_bytes if self.error is None else None,
            "verdict": self.verdict,
            "largest_micro_batch": self.largest_batch,
            "error": self.error,
        }


def by_size(
    setup: Setup, gpu: Gpu | None, context_bytes: int, error: float = 0.0, methods: Iterable[str] = METHODS
) -> list[SizeFit]:
    """`setup` for models of every size, under each method; `context_bytes` is the CUDA context where no GPU
    is named. What the formula cannot evaluate has its reason in place of numbers.
    """
    found = []
    for name in SIZES:
        spec = find(name).spec()
        for method in dict.fromkeys(methods):
            try:
                this = under(setup, method)
                run = need(spec, this, error)
            except UsageError as problem:
                found.append(SizeFit(name, spec.parameters, method, error=str(problem)))
                continue
            if gpu is None:
                device = run.reserved + context_bytes
                found.append(SizeFit(name, spec.parameters, method, this, device))
                continue
            largest = Structure(spec, this, Room(gpu, error)).largest_batch()
            device, word = run.device_bytes(gpu), run.word(gpu)
            verdict = withheld(word, tuple(uncounted_of(this, gpu)))
            found.append(SizeFit(name, spec.parameters, method, this, device, verdict, largest))
    return found
