"""How fast the formula is: `pytest benchmarks/bench_formula.py`. Predictions a second of one structure, a
million-cell grid, one build.
"""

from __future__ import annotations

from typing import Any

import pytest

from memplan.planner.formula.engine import symbolic
from memplan.planner.formula.program import Symbolic
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve


@pytest.fixture(params=["full", "lora", "qlora"])
def structure(request: pytest.FixtureRequest) -> Symbolic:
    found = symbolic(find("llama-7b").spec(), resolve({"method": request.param}))
    found.totals(2, 1024, 16)
    return found


def test_predictions_a_second(benchmark: Any, structure: Symbolic) -> None:
    """A thousand predictions: totals of every moment and the peak, from the rows that --explain prints. Goal:
    5,000 a second.
    """

    def thousand() -> None:
        for length in range(1000, 2000):
            structure.totals(2, length, 16)

    benchmark(thousand)
    benchmark.extra_info["predictions_per_second"] = round(1000 / benchmark.stats["mean"])
    assert benchmark.extra_info["predictions_per_second"] >= 5000


def test_million_cell_grid(benchmark: Any, structure: Symbolic) -> None:
    """1,000 micro-batch sizes x 1,000 sequence lengths, through NumPy. Goal: seconds."""
    numpy = pytest.importorskip("numpy")
    batches, lengths = numpy.arange(1, 1001)[:, None], numpy.arange(16, 16016, 16)[None, :]
    found = benchmark.pedantic(lambda: structure.grid(batches, lengths, 16), rounds=2)
    assert found["peak"].shape == (1000, 1000)


def test_one_structure(benchmark: Any) -> None:
    """Building one structure from nothing: walk, peaks, compiled expressions."""
    spec = find("llama-7b").spec()
    benchmark.pedantic(lambda: Symbolic(spec, resolve({"method": "lora"})).totals(2, 1024, 16), rounds=5)
