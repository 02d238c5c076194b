"""LoRA adapters beside an inference: both engines hold the same, and where a CUDA build is there an
unmodified script that loads and swaps them has the same peak.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import memplan
from memplan.planner.inputs.setup import resolve
from memplan.planner.prediction import Prediction
from memplan.planner.tables.components import COMPONENTS
from memplan.planner.tables.errors import UsageError

PYTHON = os.environ.get("MEMPLAN_DRYRUN_PYTHON")
WIDTH, INNER, LAYERS = 512, 1024, 6
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 4000,
    "tie_word_embeddings": False,
}
ONE = 4 * 16 * LAYERS * (4 * (WIDTH + WIDTH) + 3 * (WIDTH + INNER))
"""Bytes of an adapter of rank 16 on all linear layers, in fp32."""


def served(engine: str = "formula", **fields: Any) -> Prediction:
    sizes = {"micro_batch": 2, "sequence_length": 512, "gpu": "a100-80gb"}
    return memplan.plan(CONFIG, engine=engine, method="inference", **sizes, **fields)


def test_each_adapter_is_there_and_one_is_computed() -> None:
    """Unmerged, the forward holds more than with merged weights; of more adapters only the weights count."""
    merged, one, five = (served(adapters=count) for count in (None, 1, 5))
    weights = [found.moment("forward").components["weights"] for found in (merged, one, five)]
    assert weights[1] - weights[0] == ONE and weights[2] - weights[0] == 5 * ONE
    passing = [
        found.peak.allocated_bytes - held for found, held in zip((merged, one, five), weights, strict=True)
    ]
    assert passing[0] < passing[1] == passing[2]
    assert five.total_parameters - merged.total_parameters == 5 * ONE // 4
    assert five.trainable_parameters == 0 and five.checkpoint_bytes == merged.checkpoint_bytes


@pytest.mark.trace
@pytest.mark.parametrize(
    "fields",
    [
        {"adapters": 3, "rank": 32},
        {"adapters": 2, "targets": ("attention",), "adapter_dtype": "bfloat16"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_both_engines_serve_the_same(fields: dict[str, Any]) -> None:
    formula, trace = (served(engine, **fields) for engine in ("formula", "trace"))
    for moment in ("load_peak", "load", "forward"):
        ours, theirs = formula.moment(moment).components, trace.moment(moment).components
        assert all(abs(ours[name] - theirs[name]) <= 16 * 512 for name in COMPONENTS), moment
    assert abs(formula.peak.reserved_bytes - trace.peak.reserved_bytes) <= 2**21  # a segment


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "lora", "adapters": 2}, "use --method inference"),
        ({"method": "inference", "adapters": 0}, "adapters is 0: expected a whole number from 1"),
    ],
)
def test_what_serves_no_adapters(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve(fields)


@pytest.mark.trace
@pytest.mark.skipif(not PYTHON, reason="MEMPLAN_DRYRUN_PYTHON names no CUDA build of torch")
@pytest.mark.parametrize("count", [0, 3])
def test_an_unmodified_script_serves_so(count: int, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from memplan.planner.tables.gpus import find_gpu
    from memplan.planner.tables.torch_versions import nearest
    from memplan.profiler.dryrun.rehearse import Rehearsal, rehearse

    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    if count:
        model = LlamaForCausalLM(LlamaConfig(**CONFIG))
        lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
        get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    script = Path(__file__).with_name("dryrun_scripts") / "serves.py"
    command = ("python", str(script), str(tmp_path), str(tmp_path / "adapter"), str(count))
    request = Rehearsal(command, find_gpu("a100-80gb"), python=PYTHON, steps=0, random_weights=True)
    found = rehearse(request).observation
    ours = served("trace", adapters=count or None, torch=nearest(found.torch))
    assert ours.peak.moment == "forward"
    assert ours.peak.allocated_bytes == pytest.approx(found.allocated_bytes, abs=8 * 512)
