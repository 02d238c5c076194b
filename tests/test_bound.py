"""Lower bounds of what no trace runs and no rule counts: never more than the formula says where it has a
rule, and what they leave out is said.
"""

from __future__ import annotations

import itertools

import pytest

import memplan
from memplan.planner.answers.bound import bound, nearest
from memplan.planner.formula.engine import plan
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}
LLAMA = {"model_type": "llama", **SIZES}
STRATEGIES = [("fsdp", "none"), ("fsdp", "all"), ("zero1", "none"), ("zero2", "optimizer"), ("zero3", "all")]
CHOICES = [
    {"method": "full"},
    {"method": "lora", "recipe": "axolotl"},
    {"method": "full", "autocast": "bfloat16", "weight_dtype": "float32", "checkpointing": "non_reentrant"},
]


def least(config: dict, setup) -> Prediction:
    model = find(config)
    runs = nearest(model.config, setup)
    assert runs is not None
    return bound(plan(model.spec(), runs), model.config, setup)


@pytest.mark.parametrize(("strategy", "choice"), [*itertools.product(STRATEGIES, CHOICES)], ids=str)
def test_one_rank_needs_no_less_than_its_bound(strategy, choice):
    """The formula has rules for these strategies, which dry runs of them agree with."""
    parallel, offload = strategy
    setup = resolve(
        {**choice, "parallel": parallel, "offload": offload, "micro_batch": 2, "sequence_length": 256}
    )
    known, found = plan(find(LLAMA).spec(), setup), least(LLAMA, setup)
    assert 0 < found.peak.allocated_bytes <= known.peak.allocated_bytes
    assert found.step_peak.allocated_bytes <= known.step_peak.allocated_bytes
    for moment in found.moments:
        assert moment.allocated_bytes <= found.peak.allocated_bytes
    assert found.setup == setup and f"what {parallel} gathers" in " ".join(found.not_modelled)


def test_packed_weights_are_bounded_by_their_bits():
    """The formula counts the same checkpoint's packed weights tensor by tensor, scales left out."""
    config = {**LLAMA, "quantization_config": {"quant_method": "nvfp4"}}
    setup = resolve({"method": "lora", "checkpoint_quant": "nvfp4", "sequence_length": 256})
    known, found = plan(find(config).spec(), setup), least(config, setup)
    assert found.moment("load").components["weights"] == known.moment("load").components["weights"]


def test_nothing_is_bounded_where_ranks_share_or_a_trace_runs_it():
    several = resolve({"method": "lora", "parallel": "fsdp", "gpus": 2})
    assert nearest(LLAMA, several) is None
    assert nearest(LLAMA, resolve({"method": "lora"})) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "full", "optimizer": "muon", "parallel": "fsdp"},
        {"method": "full", "task": "reward", "parallel": "zero1"},
        {"method": "lora", "task": "dpo", "parallel": "zero3"},
        {"method": "lora", "task": "orpo", "parallel": "zero3"},
    ],
    ids=str,
)
def test_one_rank_without_a_rule_is_bounded_and_two_are_refused(fields):
    found = memplan.plan(LLAMA, **fields)
    alone = memplan.plan(LLAMA, **{**fields, "parallel": "none"})
    assert found.not_modelled and found.peak.allocated_bytes <= alone.peak.allocated_bytes
    assert {gpu.verdict for gpu in found.gpus} <= {None, "no"}
    with pytest.raises(UsageError, match="whole matrices|has no rule for parallel"):
        memplan.plan(LLAMA, gpus=2, **fields)


def test_what_a_library_refuses_stays_refused():
    with pytest.raises(UsageError, match="cannot step under FSDP2"):
        memplan.plan(LLAMA, method="full", optimizer="paged_adamw_8bit", parallel="fsdp")


@pytest.mark.trace
def test_a_family_for_the_trace_has_a_bound_on_one_rank():
    for library in ("torch", "transformers", "peft", "accelerate"):
        pytest.importorskip(library)
    config = {"model_type": "seed_oss", "head_dim": 64, **SIZES}
    sizes = {"method": "lora", "targets": ("q_proj",), "sequence_length": 64}
    alone = memplan.plan(config, **sizes)
    found = memplan.plan(config, parallel="fsdp", **sizes)
    weights = alone.moment("load").components["weights"]
    assert weights < found.peak.allocated_bytes <= alone.peak.allocated_bytes and not alone.not_modelled
    assert found.not_modelled and {gpu.verdict for gpu in found.gpus} <= {None, "no"}
    with pytest.raises(UsageError, match="the trace runs one process"):
        memplan.plan(config, parallel="fsdp", gpus=2, **sizes)
