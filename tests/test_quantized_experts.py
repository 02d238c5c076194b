"""Experts held as 3-D parameters in 4 bits, and axolotl's fp32 passes: the formula, the trace and a real step
on the CPU hold the same.
"""

from __future__ import annotations

from typing import Any

import pytest

for library in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(library)

import memplan  # noqa: E402
from memplan.planner.importers.files import read_training_file  # noqa: E402
from memplan.planner.inputs.setup import resolve  # noqa: E402
from memplan.planner.prediction import Prediction  # noqa: E402
from memplan.planner.tables.components import COMPONENTS  # noqa: E402
from memplan.planner.tables.errors import UsageError  # noqa: E402

LAYERS, HIDDEN, EXPERTS, INNER = 4, 64, 8, 32
QWEN = {
    "model_type": "qwen3_moe",
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "moe_intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "sliding_window": 64,
}
GRANITE = {
    "model_type": "granitemoe",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
}
COMMON: dict[str, Any] = {
    "method": "qlora",
    "targets": ("q_proj", "v_proj"),
    "sequence_length": 64,
    "micro_batch": 2,
    "quantize_experts": True,
}
EXPERT_WEIGHTS = LAYERS * EXPERTS * 3 * HIDDEN * INNER  # gate, up and down of every expert


def weights(prediction: Prediction, name: str = "") -> int:
    """Bytes of the weights whose rows' names hold `name`, once all is loaded."""
    rows = prediction.moment("load").rows
    return sum(row.bytes for row in rows if row.component == "weights" and name in row.name)


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (QWEN, {"recipe": "axolotl"}),
        (QWEN, {"recipe": "axolotl", "checkpointing": "non_reentrant", "targets": ("all-linear",)}),
        (QWEN, {"recipe": "hf", "quant_type": "fp4", "double_quant": False, "quant_block": 128}),
        (QWEN, {"recipe": "axolotl", "quantize_experts": False}),
        (QWEN, {"recipe": "axolotl", "quantize_experts": False, "kbit_prepare": True}),
        (QWEN, {"recipe": "raw", "load": "random", "micro_batch": 1}),
        (GPT_OSS, {"recipe": "axolotl", "attention": "eager"}),
        (GRANITE, {"recipe": "axolotl"}),
        (QWEN, {"recipe": "axolotl", "method": "lora", "quantize_experts": False}),
        (QWEN, {"recipe": "axolotl", "method": "full", "quantize_experts": False}),
    ],
    ids=[
        "cached",
        "checkpointed",
        "single",
        "upcast",
        "prepared",
        "raw",
        "biases",
        "granite",
        "lora",
        "full",
    ],
)
def test_the_formula_holds_what_the_trace_holds(config: dict[str, Any], fields: dict[str, Any]) -> None:
    ours, theirs = (engine(config, **{**COMMON, **fields}) for engine in (memplan.plan, memplan.trace))
    assert ours.total_parameters == theirs.total_parameters
    assert ours.model.parameters == theirs.model.parameters
    assert ours.checkpoint_bytes == theirs.checkpoint_bytes
    for breakdown in ours.moments:
        other = theirs.moment(breakdown.moment)
        for component in COMPONENTS:
            found = [sum(r.bytes for r in b.rows if r.component == component) for b in (breakdown, other)]
            assert found[0] == pytest.approx(found[1], rel=2e-3, abs=2048), (breakdown.moment, component)
    assert ours.peak.reserved_bytes == pytest.approx(theirs.peak.reserved_bytes, rel=0.04)


@pytest.mark.parametrize("checkpointing", ["none", "non_reentrant"])
def test_quantized_experts_hold_what_the_real_ones_hold(held: Any, checkpointing: str) -> None:
    fields = {**COMMON, "recipe": "raw", "optimizer": "adamw_torch_fused", "checkpointing": checkpointing}
    setup = resolve({**fields, "device": "cpu"})
    found = held.traced(QWEN, setup)
    assert found.differences(held.real(QWEN, setup)) == {}
    assert any("experts.parametrizations.gate_up_proj.0" in name for name in found.weights)


def test_four_bits_and_the_constants_are_what_is_kept_of_the_experts() -> None:
    """Half a byte an element; per 64 a byte of constants, and an fp32 per 256 of those."""
    prediction = memplan.plan(QWEN, **COMMON, recipe="axolotl")
    blocks = EXPERT_WEIGHTS // 64
    tables = 2 * LAYERS * (16 * 4 + 256 * 4 + 4)  # codes, nested codes and offsets of two parameters a layer
    assert weights(prediction, "experts.") == EXPERT_WEIGHTS // 2 + blocks + blocks // 256 * 4 + tables


def test_every_layers_dequantized_experts_wait_for_the_backward_without_checkpointing() -> None:
    plain, checkpointed = (
        memplan.plan(QWEN, **COMMON, recipe="axolotl", checkpointing=name)
        for name in ("none", "non_reentrant")
    )
    kept, again = (
        sum(row.bytes for row in p.moment("backward").rows if "dequantized experts" in row.name)
        for p in (plain, checkpointed)
    )
    assert kept == EXPERT_WEIGHTS * 2
    assert again <= EXPERT_WEIGHTS * 2 // LAYERS


def test_axolotl_keeps_in_fp32_what_is_not_quantized_but_norms_and_embeddings() -> None:
    found = memplan.plan(QWEN, **{**COMMON, "quantize_experts": False}, recipe="axolotl")
    dtypes = {r.name.rpartition("*.")[2]: r.dtype for r in found.moment("load").rows}
    assert dtypes["mlp.experts.gate_up_proj"] == dtypes["mlp.gate.weight"] == "float32"
    assert dtypes["model.embed_tokens.weight"] == dtypes["lm_head.weight"] == "bfloat16"
    assert dtypes["input_layernorm.weight"] == dtypes["self_attn.q_norm.weight"] == "bfloat16"
    assert weights(found, "experts.") == EXPERT_WEIGHTS * 4


def test_an_adapter_without_quantization_sees_embeddings_go_to_fp32_and_back() -> None:
    """A dry run of axolotl 0.19 shows it: both in fp32 and the first one's way back, beside all else."""
    config = {**QWEN, "model_type": "llama", "vocab_size": 50_000}
    setup = {"method": "lora", "recipe": "axolotl", "targets": ("q_proj",), "sequence_length": 64}
    norms = (2 * LAYERS + 1) * HIDDEN * 2
    for engine in (memplan.plan, memplan.trace):
        found = engine(config, **setup)
        load, peak = (sum(row.bytes for row in found.moment(name).rows) for name in ("load", "load_peak"))
        adapters = sum(row.bytes for row in found.moment("load").rows if "lora" in row.name)
        both = 2 * 50_000 * HIDDEN * 2
        assert peak - (load - adapters) == pytest.approx(both + norms + both // 2, abs=8192)
    flash = resolve({"method": "full", "recipe": "axolotl", "attention": "flash_attention_2"})
    assert flash.upcast_modules == "routers"
    assert resolve({"method": "lora", "recipe": "axolotl", "gpus": 2, "parallel": "fsdp"}).upcast_modules == (
        "none"
    )


def test_biases_of_experts_stay_in_16_bit() -> None:
    """They have two dimensions, and axolotl quantizes parameters of three."""
    found = memplan.plan(GPT_OSS, **{**COMMON, "recipe": "axolotl", "attention": "eager"})
    dtypes = {r.name.rpartition("experts.")[2]: r.dtype for r in found.moment("load").rows}
    assert dtypes["gate_up_proj"] == dtypes["down_proj"] == "nf4"
    assert dtypes["gate_up_proj_bias"] == dtypes["down_proj_bias"] == "bfloat16"


FILE = """
base_model: Qwen/Qwen3-30B-A3B
adapter: {adapter}
{bits}: true
quantize_moe_experts: true
lora_r: 8
lora_target_modules: [q_proj]
"""


def test_axolotls_key_is_read(tmp_path: Any) -> None:
    (path := tmp_path / "run.yaml").write_text(FILE.format(adapter="qlora", bits="load_in_4bit"))
    fields = read_training_file(path).fields
    setup = resolve({}, imported=fields)
    assert (setup.quantize_experts, setup.upcast_modules) == (True, "routers")
    without = resolve({}, imported={**fields, "quantize_experts": False})
    assert without.upcast_modules == "unquantized"
    assert resolve({"parallel": "fsdp", "gpus": 2}, imported=fields).upcast_modules == "none"


def test_eight_bit_experts_are_said_not_to_be_modeled(tmp_path: Any) -> None:
    (path := tmp_path / "run.yaml").write_text(FILE.format(adapter="lora", bits="load_in_8bit"))
    imported = read_training_file(path)
    assert not imported.fields.get("quantize_experts")
    assert any("quantize_moe_experts with load_in_8bit is not modeled" in text for text in imported.warnings)


def test_experts_are_quantized_beside_a_four_bit_base_alone() -> None:
    for fields in ({"method": "lora"}, {"method": "qlora", "quant_type": "int8"}):
        with pytest.raises(UsageError, match="quantize_experts"):
            resolve({**fields, "quantize_experts": True})
