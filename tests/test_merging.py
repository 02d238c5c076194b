"""An adapter merged into its base after training: a moment of its own, of peft's own code. Where a CUDA build
is there, an unmodified script's peak is the trace's.
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
from memplan.planner.tables.components import COMPONENTS, EVALUATION, MERGE
from memplan.planner.tables.errors import UsageError

pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

PYTHON = os.environ.get("MEMPLAN_DRYRUN_PYTHON")
WIDTH, INNER, LAYERS = 512, 2048, 2
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}
COMMON: dict[str, Any] = {
    "recipe": "raw",
    "seq": 16,
    "batch": 1,
    "targets": ("all-linear",),
    "rank": 16,
    "dropout": 0.0,
    "weight_dtype": "bfloat16",
    "compute_dtype": "bfloat16",
    "zero_grad": "after_step",
    "kbit_prepare": False,
    "checkpointing": "none",
    "gpu": "a100-80gb",
}


def traced(method: str, engine: str = "trace", **more: Any) -> Prediction:
    own = {"double_quant": True} if method == "qlora" else {}
    return memplan.plan(CONFIG, method=method, engine=engine, **{**COMMON, **own, **more})


@pytest.mark.trace
def test_one_layer_after_another_is_merged() -> None:
    """Of the largest linear layer, beside all that stays. 16-bit: its update in fp32, and that scaled. 4-bit:
    the layer dequantized to 16 bits, and in fp32 its update, their sum, and the sum as it comes back.
    """
    for method, each in (("lora", 4 + 4), ("qlora", 2 + 4 + 4 + 4)):
        found, without = traced(method, merge=True), traced(method)
        assert found.step_peak == without.step_peak and found.moments[:-1] == without.moments
        rows = found.moment(MERGE).rows
        assert sum(row.bytes for row in rows if row.component == "gradients") == 0
        made = [row for row in rows if row.component == "temporaries" and set(row.shape) == {WIDTH, INNER}]
        assert sum(row.bytes for row in made) == each * WIDTH * INNER, method
        assert found.peak.moment == MERGE


@pytest.mark.trace
@pytest.mark.parametrize(
    "fields",
    [
        {"method": "lora", "recipe": "hf", "eval_batch": 4, "modules_to_save": ("lm_head",)},
        {"method": "lora+", "adapter_dtype": "bfloat16"},
        {"method": "qlora"},
        {"method": "qlora", "recipe": "trl", "adapter_dtype": "bfloat16", "kbit_prepare": True},
        {"method": "rslora", "zero_grad": "before_forward"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_both_engines_merge_the_same(fields: dict[str, Any]) -> None:
    formula, trace = (traced(engine=engine, merge=True, **fields) for engine in ("formula", "trace"))
    parts = [
        {
            name: sum(row.bytes for row in found.moment(MERGE).rows if row.component == name)
            for name in COMPONENTS
        }
        for found in (formula, trace)
    ]
    whole = sum(parts[1].values())
    assert all(abs(parts[0][name] - parts[1][name]) <= 1e-3 * whole for name in COMPONENTS), parts
    assert formula.peak.moment == trace.peak.moment == MERGE and formula.step_peak.moment != MERGE
    assert formula.peak.reserved_bytes == pytest.approx(trace.peak.reserved_bytes, abs=2 * 2**20)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "full"}, "has no adapter that PEFT merges"),
        ({"method": "prefix-tuning"}, "has no adapter that PEFT merges"),
        ({"method": "lora", "quant_type": "int8"}, "no rule for int8"),
        ({"method": "lora", "gpus": 2, "parallel": "ddp"}, "leave it out for one GPU"),
    ],
)
def test_what_merges_nothing(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve({"merge": True, **fields})


@pytest.mark.trace
def test_the_trace_answers_where_the_formula_has_no_rule() -> None:
    with pytest.raises(UsageError, match="merging an adapter of method dora: use --engine trace"):
        memplan.plan(CONFIG, method="dora", merge=True, engine="formula")
    assert memplan.plan(CONFIG, method="dora", merge=True, **COMMON).engine == "trace"
    assert memplan.plan(CONFIG, method="lora", merge=True, **COMMON).engine == "formula"
    assert not any(m.moment in (MERGE, EVALUATION) for m in memplan.plan(CONFIG, method="lora").moments)


@pytest.mark.trace
@pytest.mark.skipif(not PYTHON, reason="MEMPLAN_DRYRUN_PYTHON names no CUDA build of torch")
@pytest.mark.parametrize(("method", "off"), [("lora", 0.0), ("qlora", 2e-3)])
def test_an_unmodified_script_merges_so(method: str, off: float, tmp_path: Path) -> None:
    from memplan.planner.tables.gpus import find_gpu
    from memplan.planner.tables.torch_versions import nearest
    from memplan.profiler.dryrun.rehearse import Rehearsal, rehearse

    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    script = Path(__file__).with_name("dryrun_scripts") / "merges.py"
    command = ("python", str(script), str(tmp_path), method)
    request = Rehearsal(command, find_gpu("a100-80gb"), python=PYTHON, steps=0, random_weights=True)
    found = rehearse(request).observation
    ours = traced(method, merge=True, torch=nearest(found.torch))
    assert ours.peak.moment == MERGE
    assert ours.peak.allocated_bytes == pytest.approx(found.allocated_bytes, rel=off, abs=512)
