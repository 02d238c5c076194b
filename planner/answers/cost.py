"""What a run costs beside GPU memory: its time as a range, money, host memory, and disk for each checkpoint.

Time is an estimate, no prediction: the least time of the arithmetic and the memory traffic
(planner/formula/step_time.py), times the smallest and the largest factor by which published runs were slower
(tables/step_time_ratios.json, from benchmarks/step_time.py).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from memplan.planner import tables
from memplan.planner.formula.resident.tensors import weight_tensors
from memplan.planner.formula.step_time import least_seconds
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.inputs.tasks import headed
from memplan.planner.prediction import Prediction
from memplan.planner.tables.dtypes import itemsize
from memplan.planner.tables.errors import UsageError, shorten
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.parallel import SHARED

READERS = 4
"""Threads that read a checkpoint's tensors, each one at a time (transformers 5.24 core_model_loading.py
GLOBAL_WORKERS)."""
_TOKENS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmbt]?)\s*", re.IGNORECASE)
_PRICE = re.compile(r"\s*[$€£]?\s*(\d+(?:\.\d+)?)\s*(?:/\s*(?:gpu-?)?h(?:our|r)?)?\s*", re.IGNORECASE)
_SCALE = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
MOST_TOKENS, MOST_PRICE = 10**16, 10**6

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Cost:
    """`step_seconds`: one optimizer step, least and most; None with the reason in `why`, which else says what
    the range rests on. `price`: of one GPU for an hour, in the user's currency. Sizes in bytes; `states`: the
    optimizer's states of one checkpoint; `offloaded`: kept in host memory; `read` and `whole`: what reading
    the checkpoint holds there, straight to the GPU (device_map) or by way of the host, for each process.
    """

    step_seconds: Range | None
    why: str
    tokens_per_step: int
    gpus: int
    tokens: int | None
    price: float | None
    model_bytes: int
    states_bytes: int
    offloaded_bytes: int
    read_bytes: int
    whole_bytes: int

    @property
    def steps(self) -> int | None:
        """Optimizer steps for the tokens asked for."""
        return None if self.tokens is None else -(-self.tokens // self.tokens_per_step)

    @property
    def tokens_per_second(self) -> Range | None:
        """Over all GPUs, least and most."""
        if self.step_seconds is None:
            return None
        least, most = self.step_seconds
        return self.tokens_per_step / most, self.tokens_per_step / least

    @property
    def hours(self) -> Range | None:
        """The run's hours; None without a number of tokens."""
        if self.step_seconds is None or self.steps is None:
            return None
        least, most = self.step_seconds
        return self.steps * least / 3600, self.steps * most / 3600

    @property
    def money(self) -> Range | None:
        """The run's price on all GPUs; None without tokens or a price."""
        if self.hours is None or self.price is None:
            return None
        return self.hours[0] * self.gpus * self.price, self.hours[1] * self.gpus * self.price

    def to_document(self) -> dict[str, Any]:
        """`cost` of the prediction's document."""
        return {
            "step_seconds": self.step_seconds,
            "tokens_per_second": self.tokens_per_second,
            "tokens": self.tokens,
            "steps": self.steps,
            "hours": self.hours,
            "price_per_gpu_hour": self.price,
            "price": self.money,
            "why": self.why,
            "checkpoint_bytes": {"model": self.model_bytes, "optimizer_states": self.states_bytes},
            "host_bytes": {
                "kept": self.offloaded_bytes,
                "reading_with_device_map": self.read_bytes,
                "reading_without": self.whole_bytes,
            },
        }


def cost(
    spec: ModelSpec,
    prediction: Prediction,
    gpu: Gpu | None,
    tokens: int | None = None,
    price: float | None = None,
) -> Cost:
    """What the predicted run costs on a GPU; without one, its disk and host memory alone."""
    setup = prediction.setup
    seconds, why = _seconds(spec, prediction, gpu)
    size = itemsize(setup.weight_dtype)
    largest = max(tensor.elements for tensor in weight_tensors(headed(spec, setup)))
    sharded = setup.gpus if setup.parallel in SHARED else 1
    states = sum(row.bytes for row in prediction.moments[-1].rows if row.component == "optimizer_states")
    return Cost(
        seconds,
        why,
        setup.micro_batch * setup.sequence_length * setup.gradient_accumulation * setup.gpus,
        setup.gpus,
        tokens,
        price,
        prediction.checkpoint_bytes,
        states * sharded,
        prediction.host_bytes,
        min(READERS * largest, spec.parameters) * size,
        spec.parameters * size,
    )


def _seconds(spec: ModelSpec, prediction: Prediction, gpu: Gpu | None) -> tuple[Range | None, str]:
    if gpu is None:
        return None, "no GPU named"
    try:
        least = least_seconds(spec, prediction.setup, gpu)
    except UsageError as error:
        return None, str(error)
    (low, high), about = slower_than_least(gpu)
    shared = "; communication between GPUs is not counted" if prediction.setup.gpus > 1 else ""
    return (
        least * low,
        least * high,
    ), f"estimate: {about} the least time of the arithmetic and traffic{shared}"


def slower_than_least(gpu: Gpu) -> tuple[Range, str]:
    """By how much published runs were slower than the least time, and which runs: those of the GPU's compute
    capability, or all where none has it.
    """
    known = _ratios()
    capability = ".".join(map(str, gpu.capability)) if gpu.capability else ""
    chosen = [known[capability]] if capability in known else list(known.values())
    ratios = [value for entry in chosen for value in entry["ratios"]]
    names = ", ".join(name for entry in chosen for name in entry["gpus"])
    other = "" if capability in known else ", none on such a GPU,"
    low, high = min(ratios), max(ratios)
    return (low, high), f"{len(ratios)} published runs ({names}){other} took {low:.1f} to {high:.1f} times"


@cache
def _ratios() -> dict[str, dict[str, Any]]:
    path = Path(tables.__file__).with_name("step_time_ratios.json")
    return dict(json.loads(path.read_text(encoding="utf-8")))


_UNITS = (
    (2 / 60, "seconds", 3600.0),
    (2, "minutes", 60.0),
    (72, "hours", 1.0),
    (float("inf"), "days", 1 / 24),
)
"""Up to how many hours a time is said in a unit, and how many of it are an hour."""


def duration(hours: Range) -> tuple[str, str]:
    """A time in words, and its unit."""
    unit, scale = next((unit, scale) for most, unit, scale in _UNITS if hours[1] <= most)
    return span((hours[0] * scale, hours[1] * scale)), unit


def span(values: Range | None) -> str:
    """Two numbers with two digits that count, once where they read the same."""
    if values is None:
        return ""
    least, most = (_short(value) for value in values)
    return least if least == most else f"{least} to {most}"


def _short(value: float) -> str:
    if value >= 100:
        digits = len(str(int(value))) - 2
        return f"{round(value / 10**digits) * 10**digits:,}"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def parse_tokens(text: str) -> int:
    """A number of tokens as people write it (10M, 1.5B, 500k). Raises UsageError."""
    match = _TOKENS.fullmatch(text)
    found = round(float(match.group(1)) * _SCALE[match.group(2).lower()]) if match and len(text) < 40 else 0
    if not 0 < found <= MOST_TOKENS:
        raise UsageError(f"--tokens {shorten(text)}: expected a number of tokens, such as 10M or 1.5B")
    return found


def parse_price(text: str) -> float:
    """What one GPU costs for an hour (1.99/h), in any currency. Raises UsageError."""
    match = _PRICE.fullmatch(text)
    found = float(match.group(1)) if match and len(text) < 40 else 0.0
    if not 0 < found <= MOST_PRICE:
        raise UsageError(f"--price {shorten(text)}: expected what a GPU costs for an hour, such as 1.99/h")
    return found
