"""One table decides which attention backend runs: the formula refuses what the trace refuses, in the same
words.
"""

from __future__ import annotations

from typing import Any

import pytest

from memplan.planner.formula.engine import plan
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError

REFUSED: list[dict[str, Any]] = [
    {"attention": "sdpa-flash", "weight_dtype": "float32", "autocast": "none"},
    {"attention": "sdpa-flash", "padded": True},
    {"attention": "sdpa-flash", "gpu": "t4", "weight_dtype": "float16"},
    {"attention": "flash_attention_2", "gpu": "t4", "weight_dtype": "float16"},
    {"attention": "flash_attention_2", "weight_dtype": "float32", "autocast": "none"},
    {"attention": "flash_attention_2", "device": "cpu"},
    {"attention": "sdpa-efficient", "device": "cpu"},
    {"attention": "flash_attention_2", "method": "qlora", "weight_dtype": "float32", "recipe": "raw"},
]
TAKEN: list[dict[str, Any]] = [
    {"attention": "sdpa-flash"},
    {"attention": "sdpa-flash", "weight_dtype": "float32", "autocast": "bfloat16"},
    {"attention": "sdpa-math", "gpu": "t4", "padded": True},
    {"attention": "flash_attention_2", "gpu": "l4"},
    {"attention": "flash_attention_2", "method": "qlora"},
    {"attention": "flash_attention_2", "method": "qlora", "recipe": "raw"},
    {"attention": "sdpa-math", "device": "cpu"},
]


def setup(fields: dict[str, Any]) -> Any:
    return resolve({"method": "lora", "sequence_length": 64, **fields})


@pytest.mark.parametrize("fields", REFUSED, ids=str)
def test_the_formula_refuses_a_backend_that_cannot_run(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--attention sdpa"):
        plan(find("smollm2-135m").spec(), setup(fields))


@pytest.mark.parametrize("fields", TAKEN, ids=str)
def test_the_formula_takes_one_that_can(fields: dict[str, Any]) -> None:
    assert plan(find("smollm2-135m").spec(), setup(fields)).peak.allocated_bytes > 0


@pytest.mark.trace
@pytest.mark.parametrize("fields", [*REFUSED, *TAKEN], ids=str)
def test_both_engines_decide_alike(fields: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    from memplan.planner.trace.engine import trace

    config = {**find("smollm2-135m").config, "num_hidden_layers": 2}

    def said(engine: Any) -> str:
        try:
            engine()
        except UsageError as error:
            return str(error)
        return "runs"

    assert said(lambda: trace(config, setup(fields))) == said(
        lambda: plan(find(config).spec(), setup(fields))
    )
