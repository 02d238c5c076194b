"""GRPO by the formula: sampling, scores and the policy's loss need what the trace's do."""

from __future__ import annotations

from typing import Any

import pytest
from test_tasks import LLAMA, QWEN, setup_of

from memplan.planner.answers.fit.frontier import Room, Structure
from memplan.planner.formula.engine import plan, symbolic
from memplan.planner.inputs.families.table import read_config
from memplan.planner.inputs.tasks import growth, server_bytes, shortest
from memplan.planner.tables.gpus import find_gpu

SHORT = {**LLAMA, "num_hidden_layers": 4}
SLIDING: dict[str, Any] = {
    **QWEN,
    "model_type": "gemma3_text",
    "num_hidden_layers": 6,
    "query_pre_attn_scalar": 64,
    "sliding_window": 64,
    "sliding_window_pattern": 3,
    "architectures": ["Gemma3ForCausalLM"],
}
SAMPLED = {"task": "grpo", "recipe": "trl", "sequence_length": 192, "completion_length": 96}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora, one generation for two micro-batches of four": (
        SHORT,
        {"method": "lora", "reference": "base", "gradient_accumulation": 4, "steps_per_generation": 2},
    ),
    "full, second model": (SHORT, {"method": "full", "reference": "model"}),
    "full, bfloat16, checkpoints": (
        QWEN,
        {"method": "full", "weight_dtype": "bfloat16", "gradient_accumulation": 2},
    ),
    "qlora, padded prompts": (QWEN, {"method": "qlora", "padded": True, "gradient_accumulation": 2}),
    "lora, one row": (QWEN, {"method": "lora", "micro_batch": 1, "weight_dtype": "bfloat16"}),
    "lora, eager attention": (SHORT, {"method": "lora", "attention": "eager", "gradient_accumulation": 4}),
    "lora, a window that cuts": (SLIDING, {"method": "lora", "gradient_accumulation": 4}),
    "vLLM that sleeps": (SHORT, {"method": "lora", "vllm_share": 0.25, "vllm_sleeps": True}),
    "vLLM all along, old scores": (SHORT, {"method": "full", "vllm_share": 0.25}),
}
FAST = ("full, second model", "vLLM that sleeps")


@pytest.mark.trace
@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in CASES]
)
def test_the_formula_samples_as_the_trace_does(case: str) -> None:
    """The peak in allocated blocks within 0.1 %, every moment's tensors within 2 %."""
    pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    from memplan.planner.trace.engine import trace

    config, fields = CASES[case]
    s = setup_of(**{**SAMPLED, **fields})
    traced, planned = trace(config, s), plan(read_config(config), s)
    assert [m.moment for m in planned.moments] == [m.moment for m in traced.moments]
    for moment in traced.moments:
        found = planned.moment(moment.moment).allocated_bytes
        assert found == pytest.approx(moment.allocated_bytes, rel=0.02), moment.moment
    assert planned.survival is not None
    assert planned.survival.allocated_bytes == pytest.approx(traced.peak.allocated_bytes, rel=1e-3)


def test_the_cache_is_of_every_row_and_token_but_the_last() -> None:
    """Keys and values of all layers when the last token is sampled, however many micro-batches share one."""
    for steps in (1, 4):
        s = setup_of(
            **{**SAMPLED, "gradient_accumulation": steps, "micro_batch": 64, "completion_length": 190}
        )
        rows = plan(read_config(SHORT), s).moment("generate").rows
        cached = sum(row.bytes for row in rows if row.name.endswith(("cached keys", "cached values")))
        assert cached == 4 * 2 * (64 * steps) * 2 * 191 * 64 * 4


def test_growth_is_every_token_once() -> None:
    """However long a completion is, its tokens are joined in at most 64 steps."""
    for tokens in (0, 1, 64, 65, 1000):
        steps = list(growth(tokens))
        assert sum(steps) == tokens and len(steps) == min(tokens, 64) and all(steps)


def test_a_row_keeps_its_completion_when_lengths_are_searched() -> None:
    """One structure for every prompt; no boundary leaves a row without one."""
    spec, s = (
        read_config(LLAMA),
        setup_of(**{**SAMPLED, "gpu": "rtx-4090", "sequence_length": 1024, "completion_length": 512}),
    )
    structure = Structure(spec, s.with_(micro_batch=64), Room(find_gpu("rtx-4090")))
    longest = structure.longest_sequence()
    assert longest is not None and longest > shortest(s) == 513
    assert structure.fits(64, longest)
    assert Structure(spec, s.with_(micro_batch=4096), Room(find_gpu("rtx-4090"))).longest_sequence() is None
    assert (
        symbolic(spec, s).totals(3, 700, 16).peak
        == plan(spec, s.with_(micro_batch=3, sequence_length=700)).peak.allocated_bytes
    )


def test_a_server_takes_its_share_of_the_gpu_that_is_named() -> None:
    """GPUs of one kernel class have structures in common, but not their memory."""
    for gpu in ("a100-40gb", "a100-80gb"):
        s = setup_of(**{**SAMPLED, "gpu": gpu, "vllm_share": 0.3})
        (row,) = (row for row in plan(read_config(SHORT), s).moment("load").rows if "vLLM" in row.name)
        assert row.bytes == server_bytes(s) == int(0.3 * find_gpu(gpu).usable_bytes)
