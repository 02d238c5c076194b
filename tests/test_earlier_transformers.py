"""`transformers=4.48` and `4.43`: the formula is the trace with those releases' loss and keys put back, and
what people measured with them.
"""

from __future__ import annotations

from typing import Any

import pytest

import memplan
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.published import published_runs
from memplan.validate.published_scores import quantities

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
    "max_position_embeddings": 256,
}
BATCH, SEQUENCE, VOCABULARY = 2, 128, LLAMA["vocab_size"]
SIZES = {"micro_batch": BATCH, "sequence_length": SEQUENCE, "gpu": "a100-80gb"}


def nbytes(rows: Any) -> int:
    return sum(row.bytes for row in rows)


@pytest.mark.parametrize(
    "fields",
    [
        {"recipe": "hf", "method": "full"},
        {
            "recipe": "hf",
            "method": "lora",
            "checkpointing": "non_reentrant",
            "attention": "flash_attention_2",
        },
        {"recipe": "raw", "method": "lora", "padded": True},
    ],
)
def test_the_formula_is_the_trace_with_the_earlier_loss_put_back(fields: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from memplan.planner.trace.earlier_releases import put_back

    ours = memplan.plan(LLAMA, **SIZES, **fields, transformers="4.48")
    with put_back(("shifted_logits", "expanded_keys")):
        theirs = memplan.trace(LLAMA, **SIZES, **fields)
    for breakdown in ours.moments:
        found, other = nbytes(breakdown.rows), nbytes(theirs.moment(breakdown.moment).rows)
        assert found == pytest.approx(other, rel=1e-3), breakdown.moment
    assert ours.peak.reserved_bytes == pytest.approx(theirs.peak.reserved_bytes, rel=0.04)


def test_each_release_keeps_the_logits_that_it_kept() -> None:
    """At the loss: 5 has the logits in 16 bit and in fp32; 4.48 a shifted fp32 copy more; 4.43 no 16 bit."""
    tokens, shifted = BATCH * SEQUENCE, BATCH * (SEQUENCE - 1)
    sizes = {}
    for release in ("5", "4.48", "4.43"):
        fields = {"recipe": "hf", "method": "lora", "checkpointing": "non_reentrant"}
        found = memplan.plan(LLAMA, **SIZES, **fields, transformers=release)
        sizes[release] = nbytes(r for r in found.moment("forward").rows if "logits" in r.name)
    assert sizes["5"] == tokens * VOCABULARY * (2 + 4 + 4)
    assert sizes["4.48"] == tokens * VOCABULARY * (2 + 4) + shifted * VOCABULARY * (4 + 4)
    assert sizes["4.43"] == tokens * VOCABULARY * 4 + shifted * VOCABULARY * (4 + 4)


def test_runs_published_with_those_releases_are_met() -> None:
    """LoRA of Mistral 7B on one A100, allocated, transformers 4.43.3 and 4.48.1: 6 % off without."""
    context, met = EvaluationContext(), {}
    for run in published_runs():
        plain = run.setup is not None and run.setup.get("method") in ("lora", "full")
        plain = plain and (
            run.setup.get("gpus", 1) == 1 or run.setup["method"] == "full"
        )  # not FSDP1's adapters
        if plain and run.model == "mistral-7b" and run.release and "allocated" in run.measured:
            found = context.predict(run.model, {**run.setup, "transformers": run.release}, "formula")
            met[run.id] = quantities(found)["allocated"] / run.measured["allocated"] - 1
    assert len(met) >= 5
    assert max(map(abs, met.values())) <= 0.001, met


def test_the_trace_refuses_and_says_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"cannot run 4\.48: use --engine formula"):
        memplan.trace(LLAMA, transformers="4.48")


def test_experts_have_no_rule_there() -> None:
    moe = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    with pytest.raises(UsageError, match="linear modules in transformers"):
        memplan.plan(moe, transformers="4.48")
    assert resolve({}).transformers == "5"
