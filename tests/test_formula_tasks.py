"""RLOO, distillation and embeddings by the formula need what the trace's do."""

from __future__ import annotations

from typing import Any

import pytest
from test_tasks import LLAMA, QWEN, setup_of

from memplan.planner.formula.engine import plan, symbolic
from memplan.planner.formula.lacking import lacking
from memplan.planner.inputs.families.table import read_config
from memplan.planner.tables.errors import UsageError

SHORT = {**LLAMA, "num_hidden_layers": 4}
SAMPLED = {"recipe": "trl", "sequence_length": 192, "completion_length": 96, "micro_batch": 4}
TEXTS = {"task": "embed", "recipe": "hf", "sequence_length": 96, "micro_batch": 4}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rloo, full, second model": (SHORT, {**SAMPLED, "task": "rloo", "method": "full"}),
    "rloo, lora, accumulated": (
        QWEN,
        {**SAMPLED, "task": "rloo", "method": "lora", "gradient_accumulation": 4, "steps_per_generation": 2},
    ),
    "rloo, qlora, one row, no reference": (
        QWEN,
        {**SAMPLED, "task": "rloo", "method": "qlora", "micro_batch": 1, "reference": "none"},
    ),
    "distill, full": (
        QWEN,
        {
            **SAMPLED,
            "task": "distill",
            "method": "full",
            "teacher": "qwen2.5-0.5b",
            "weight_dtype": "bfloat16",
        },
    ),
    "distill, lora, one row, no checkpoints": (
        QWEN,
        {
            **SAMPLED,
            "micro_batch": 1,
            "checkpointing": "none",
            "task": "distill",
            "method": "lora",
            "teacher": "qwen2.5-1.5b",
        },
    ),
    "embed, full, two texts": (SHORT, {**TEXTS, "method": "full", "texts": 2}),
    "embed, lora, three texts, checkpoints": (
        QWEN,
        {**TEXTS, "method": "lora", "texts": 3, "checkpointing": "non_reentrant", "weight_dtype": "bfloat16"},
    ),
    "embed, full, a mini-batch at a time": (
        SHORT,
        {**TEXTS, "method": "full", "texts": 2, "micro_batch": 8, "mini_batch": 2},
    ),
    "embed, lora, a mini-batch at a time, one larger than the batch": (
        QWEN,
        {**TEXTS, "method": "lora", "texts": 3, "mini_batch": 8, "gradient_accumulation": 2},
    ),
    "embed, full, one example of four texts": (
        QWEN,
        {**TEXTS, "method": "full", "texts": 4, "micro_batch": 1, "gradient_accumulation": 2},
    ),
}
FAST = ("rloo, full, second model", "distill, lora, one row, no checkpoints", "embed, full, two texts")


def known(config: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """The config with its teacher's vocabulary."""
    return {**config, "vocab_size": 151936} if "teacher" in fields else config


@pytest.mark.trace
@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in CASES]
)
def test_the_formula_trains_as_the_trace_does(case: str) -> None:
    """The peak in allocated blocks within 0.2 %, every moment's tensors within 2 %."""
    pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    from memplan.planner.trace.engine import trace

    config, fields = CASES[case]
    config, s = known(config, fields), setup_of(**fields)
    traced, planned = trace(config, s), plan(read_config(config), s)
    assert [m.moment for m in planned.moments] == [m.moment for m in traced.moments]
    for moment in traced.moments:
        found = planned.moment(moment.moment).allocated_bytes
        assert found == pytest.approx(moment.allocated_bytes, rel=0.02), moment.moment
    assert planned.survival is not None
    assert planned.survival.allocated_bytes == pytest.approx(traced.peak.allocated_bytes, rel=2e-3)
    assert planned.trainable_parameters == traced.trainable_parameters


def test_a_teacher_is_held_and_must_have_the_students_vocabulary() -> None:
    """Its rows are there all along, in the trained weights' dtype whatever the student's is quantized to."""
    s = setup_of(**{**SAMPLED, "task": "distill", "method": "qlora", "teacher": "qwen2.5-0.5b"})
    spec = read_config({**QWEN, "vocab_size": 151936})
    rows = [row for row in plan(spec, s).moment("forward").rows if row.name.startswith("teacher: ")]
    weights = [row for row in rows if row.component == "weights"]
    assert sum(row.bytes for row in weights if "inv_freq" not in row.name) == 4 * 494_032_768
    with pytest.raises(UsageError, match="151,936 entries in its vocabulary"):
        plan(read_config(QWEN), s)


def test_one_structure_is_of_every_size() -> None:
    """Micro-batch and length are symbols: what a search evaluates is what a prediction says."""
    s = setup_of(**{**TEXTS, "method": "lora", "texts": 3})
    spec = read_config(SHORT)
    at = s.with_(micro_batch=7, sequence_length=50)
    assert symbolic(spec, s).totals(7, 50, s.rank).peak == plan(spec, at).peak.allocated_bytes


def test_what_the_formula_leaves_to_the_trace_is_named() -> None:
    """One text at a time, an unknown family's teacher."""
    s = setup_of(**{**TEXTS, "method": "lora", "texts": 2, "mini_batch": 1})
    assert "one text" in lacking(read_config(SHORT), s)
    s = setup_of(**{**SAMPLED, "task": "distill", "method": "lora", "teacher": "qwen3.5-4b"})
    assert "teacher" in lacking(read_config(SHORT), s)
