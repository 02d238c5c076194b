"""Experts by the GPU's compute capability: torch's grouped product from 8.0 on, transformers' loop below."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from memplan.planner.formula.engine import plan  # noqa: E402
from memplan.planner.inputs.models import find  # noqa: E402
from memplan.planner.inputs.setup import resolve  # noqa: E402
from memplan.planner.trace.engine import traced  # noqa: E402

HIDDEN, EXPERTS, WIDE = 128, 8, 256
CONFIG = {
    "model_type": "mixtral",
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
}
UP, DOWN = EXPERTS * 2 * WIDE * HIDDEN * 2, EXPERTS * WIDE * HIDDEN * 2  # bytes of a layer's fp16 matrices


def run(gpu: str):
    fields = {
        "method": "lora",
        "recipe": "raw",
        "targets": "attention",
        "weight_dtype": "float16",
        "gpu": gpu,
    }
    setup = resolve({**fields, "autocast": "none", "checkpointing": "none", "sequence_length": 32})
    found, log = traced(CONFIG, setup)
    return found, [s.nbytes for s in log.storages if "_backward" in s.op and "group" in s.op], setup


def test_below_compute_capability_8_frozen_experts_get_gradients_for_a_moment():
    """transformers 5.24 integrations/moe.py _grouped_mm_fallback_bwd makes zeros like the weight, which
    autograd then drops: two layers of two matrices in each of two steps.
    """
    found, made, setup = run("t4")
    assert sorted(nbytes for nbytes in made if nbytes in (UP, DOWN)) == [DOWN] * 4 + [UP] * 4
    ours = plan(find(CONFIG).spec(), setup).moment("backward").allocated_bytes
    theirs = found.moment("backward").allocated_bytes
    assert abs(ours - theirs) < DOWN / 8, "the formula has them too"


def test_from_compute_capability_8_on_they_get_none():
    found, made, setup = run("a100-80gb")
    assert made == []
    backward = found.moment("backward").allocated_bytes - found.moment("load").allocated_bytes
    assert backward < run("t4")[0].moment("backward").allocated_bytes - found.moment("load").allocated_bytes
