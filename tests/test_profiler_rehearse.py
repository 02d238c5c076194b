"""The rehearsal of a campaign: tiny models of the same architecture, the same choices, nothing of CUDA's
left.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from memplan.profiler import case_matrix
from memplan.profiler.rehearsal import rehearsal, small_config

ROOT = Path(__file__).parents[1]


def test_every_shipped_campaign_becomes_a_rehearsal_on_the_cpu() -> None:
    for path in (ROOT / "campaigns").glob("*.yaml"):
        full = case_matrix.read(path).cases
        small = rehearsal(case_matrix.read(path)).cases
        assert {case.model for case in small} == {case.model for case in full}
        assert {case.setup.method for case in small} == {case.setup.method for case in full}
        for case in small:
            assert (case.setup.device, case.cap_bytes, case.boundary, case.setup.gpu) == (
                "cpu",
                None,
                False,
                None,
            )
            assert case.setup.sequence_length <= 48
            assert case.config.get("hidden_size", case.config.get("n_embd", 64)) <= 64, case.model


def test_a_small_config_keeps_what_makes_the_architecture() -> None:
    config = {
        "model_type": "x",
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 40,
        "vocab_size": 32000,
        "layer_types": ["sliding", "full"] * 20,
        "rope_scaling": {"factor": 8},
        "hidden_act": "silu",
        "eos_token_id": [128001, 128008],
        "tie_word_embeddings": True,
        "intermediate_size": 96,
        "text_config": {"hidden_size": 2048},
    }
    assert small_config(config) == {
        "model_type": "x",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 512,
        "layer_types": ["sliding", "full"],
        "hidden_act": "silu",
        "eos_token_id": None,
        "tie_word_embeddings": True,
        "intermediate_size": 96,
        "text_config": {"hidden_size": 64},
        "pad_token_id": 0,
        "bos_token_id": 1,
    }


@pytest.mark.trace
@pytest.mark.parametrize("model", ["phi-3-mini", "qwen2.5-vl-3b", "flan-t5-xl", "mixtral-small"])
def test_a_rehearsal_runs(model: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from memplan.profiler.measure import profile

    cases = rehearsal(case_matrix.read(ROOT / "campaigns" / "h200.yaml")).cases
    case = next(c for c in cases if c.model == model and c.setup.method != "full")
    measured = profile(case.config, case.setup, steps=1)
    assert measured.outcome == "ok", measured.failure
