"""What a checkpoint already is: its quantization_config decides the bytes of the base, and what has no rule
is a lower bound.

By hand, of LLAMA: a layer's seven weights are q, o 256 x 256; k, v 128 x 256; gate, up 512 x 256; down
256 x 512, 589,824 elements; in groups of 128 columns that is 4,608 groups, in blocks of 128 x 128 it is 36.
"""

from __future__ import annotations

import json
import typing

import pytest

import memplan
from memplan import api
from memplan.cli.main import run
from memplan.planner.inputs import quantized
from memplan.planner.inputs.checking import CheckpointQuant
from memplan.planner.inputs.checkpoint_formats import FORMATS

LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
OSS = {
    "model_type": "gpt_oss",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 1000,
    "dtype": "bfloat16",
}
LAYER, GROUPS, BLOCKS = 589_824, 4_608, 36
PLAIN = 2 * 1000 * 256 * 2 + 5 * 256 * 2 + 2 * 32 * 4  # embeddings and head, norms, rotary tables
NF4 = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}
# quantization_config -> bytes of one layer's seven weights
STORED = {
    "fp8": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, LAYER + BLOCKS * 4),
    "fp8 by tensor": ({"quant_method": "fp8", "weight_block_size": None}, LAYER + 7 * 4),
    "fp8 ue8m0": ({"quant_method": "fp8", "scale_fmt": "ue8m0"}, LAYER + BLOCKS),
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        LAYER // 2 + GROUPS * 2 + GROUPS // 2 + 2048 * 4,  # g_idx: an int32 per input, 6 x 256 + 512
    ),
    "gptq 8": (
        {"quant_method": "gptq", "bits": 8, "group_size": 128},
        LAYER + GROUPS * 2 + GROUPS + 2048 * 4,
    ),
    "gptq 3": (
        {"quant_method": "gptq", "bits": 3, "group_size": 128},
        LAYER * 3 // 8 + GROUPS * 2 + GROUPS * 3 // 8 + 2048 * 4,
    ),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128}, LAYER // 2 + GROUPS * 2 + GROUPS // 2),
    "nf4": (
        NF4,
        # half a byte each; a byte per 64; a float32 per 256 of those, 4, 4, 2, 2, 8, 8, 8 in the weights; the
        # two codes and the offset
        LAYER // 2 + LAYER // 64 + 36 * 4 + 7 * (64 + 1024 + 4),
    ),
    "int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, LAYER + (256 * 3 + 128 * 2 + 1024) * 4),
    "int4 in groups": (
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}},
        LAYER // 2,
    ),
    "hqq": ({"quant_method": "hqq", "nbits": 2}, LAYER // 4),
    "torchao": (
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}},
        LAYER // 2,
    ),
}


def config(quantization, base=LLAMA):
    return {**base, "quantization_config": quantization}


def weights(prediction, moment="load"):
    found = next(each for each in prediction.moments if each.moment == moment)
    return sum(row.bytes for row in found.rows if row.component == "weights")


@pytest.mark.parametrize("quantization, layer", STORED.values(), ids=STORED)
def test_the_base_has_the_bytes_that_the_checkpoint_has(quantization, layer):
    found = memplan.plan(config(quantization), method="inference", kbit_prepare=False)
    assert weights(found) == 2 * layer + PLAIN


def test_mxfp4_stores_experts_alone():
    found = memplan.plan(config({"quant_method": "mxfp4"}, OSS), method="inference")
    rows = {row.name: row for row in found.moments[0].rows}
    gate_up = rows["model.layers.*.mlp.experts.gate_up_proj"]
    assert gate_up.bytes == 2 * (4 * 64 * 128 // 2)
    assert rows["model.layers.*.mlp.experts.gate_up_proj scales"].bytes == 2 * (4 * 64 * 128 // 32)
    assert rows["model.layers.*.mlp.experts.gate_up_proj_bias"].dtype == "bfloat16"
    assert rows["model.layers.*.self_attn.q_proj.weight"].dtype == "bfloat16"


def test_a_published_model_in_awq():
    """Llama 3.1 8B: 6,979,321,856 elements in linear layers, 1,050,673,152 outside, 65 norms."""
    base = api.find("llama-3.1-8b").config
    found = memplan.plan(
        config({"quant_method": "awq", "bits": 4, "group_size": 128}, base), method="inference"
    )
    linear = 6_979_321_856
    packed = linear // 2 + linear // 128 * 2 + linear // 256
    assert weights(found) == packed + 1_050_673_152 * 2 + 65 * 4096 * 2 + 2 * 64 * 4


def test_a_4_bit_checkpoint_is_qlora_without_reading_16_bit_weights():
    own = memplan.plan(config(NF4), method="lora", kbit_prepare=False)
    quantizes = memplan.plan(LLAMA, method="qlora", kbit_prepare=False)
    assert own.setup.quant_type == "nf4" and own.setup.double_quant
    assert own.setup.origins["quant_type"] == own.setup.origins["checkpoint_quant"] == "checkpoint"
    step = ("load", "forward", "backward", "optimizer_step")
    sizes = [[m.allocated_bytes for m in found.moments if m.moment in step] for found in (own, quantizes)]
    assert sizes[0] == sizes[1]
    assert not own.not_modelled


def test_no_weight_arrives_in_16_bit_where_it_is_packed_already():
    """On the fly, most is there when the last layer's up_proj is read: 262,144 bytes in 16 bit, while
    half of 196,608 bytes of its attention are missing; at q only v is, but q is half as large.
    """
    short = {"method": "inference", "sequence_length": 64, "kbit_prepare": False}
    read = memplan.plan(LLAMA, quant_type="nf4", double_quant=True, **short).moments[0]
    kept = memplan.plan(config(NF4), **short).moments[0]
    assert read.moment == kept.moment == "load_peak"
    passing = [row.bytes for row in read.rows if row.component == "temporaries" and row.dtype == "bfloat16"]
    assert passing == [512 * 256 * 2]
    assert not any(row.bytes >= 1024 for row in kept.rows if row.component == "temporaries")
    assert kept.allocated_bytes < read.allocated_bytes


def test_defaults_are_the_librarys_not_ours():
    found = memplan.plan(config({"quant_method": "bitsandbytes", "load_in_4bit": True}), method="lora").setup
    assert (found.quant_type, found.double_quant, found.compute_dtype) == ("fp4", False, "float32")


def test_the_checkpoint_wins_over_what_is_asked_as_transformers_has_it():
    found = memplan.plan(config(NF4), method="qlora", quant_type="fp4", double_quant=False).setup
    assert (found.quant_type, found.double_quant) == ("nf4", True)


@pytest.mark.parametrize("name", [name for name in STORED if name not in ("nf4", "int8")])
def test_what_is_not_counted_has_no_verdict(name):
    found = memplan.plan(config(STORED[name][0]), method="lora", gpu="h200")
    assert found.gpus[0].verdict is None
    assert STORED[name][0]["quant_method"] in found.not_modelled[0]


def test_the_first_line_says_at_least(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config({"quant_method": "fp8"})))
    run([str(path), "--method", "lora", "--gpu", "h200"])
    assert "AT LEAST" in capsys.readouterr().out.splitlines()[0]
    run(["fit", str(path), "--method", "lora", "--gpu", "h200"])
    assert "not counted: of a checkpoint quantized with fp8" in capsys.readouterr().err


def test_a_list_of_modules_stays_as_it_is():
    left = {"quant_method": "fp8", "modules_to_not_convert": ["lm_head", "q_proj"]}
    rows = {row.name: row for row in memplan.plan(config(left), method="lora").moments[0].rows}
    assert rows["model.layers.*.self_attn.q_proj.weight"].dtype == "bfloat16"
    assert rows["model.layers.*.self_attn.k_proj.weight"].dtype == "float8_e4m3fn"


def test_layers_that_a_dynamic_checkpoint_leaves_are_a_lower_bound():
    found = memplan.plan(
        config({**NF4, "llm_int8_skip_modules": ["lm_head", "model.layers.1.mlp"]}), method="lora", gpu="h200"
    )
    assert found.setup.checkpoint_quant == "bitsandbytes-mixed" and found.gpus[0].verdict is None
    plain = memplan.plan(config({**NF4, "llm_int8_skip_modules": ["lm_head"]}), method="lora", gpu="h200")
    assert plain.setup.checkpoint_quant == "bitsandbytes" and plain.gpus[0].verdict == "fits"


def test_a_gpu_without_the_kernels_is_said():
    found = memplan.plan(config({"quant_method": "fp8"}), method="lora", gpu="a100-40gb")
    assert any("a100-40gb, transformers dequantizes it" in text for text in found.assumptions)


REFUSED = [
    (dict(NF4), {"method": "full"}, "trains weights"),
    ({"quant_method": "fp8"}, {"method": "full"}, "trains weights"),
    ({"quant_method": "gptq", "bits": 4}, {"method": "qlora"}, "does not quantize it again"),
    ({"quant_method": "none of these"}, {}, "is not understood"),
    ({"bits": 4}, {}, "is not understood"),
    ({"quant_method": "gptq"}, {}, "bits per weight"),
    ({"quant_method": "gptq", "bits": 5}, {}, "bits per weight"),
    ({"quant_method": "gptq", "bits": "4"}, {}, "bits per weight"),
    ({"quant_method": "compressed-tensors", "config_groups": [1]}, {}, "bits per weight"),
    ({"quant_method": "bitsandbytes"}, {}, "load_in_4bit"),
    ({**NF4, "bnb_4bit_quant_type": "nf5"}, {}, "nf4 or fp4"),
    ({**NF4, "bnb_4bit_compute_dtype": 16}, {}, "bnb_4bit_compute_dtype"),
    ("fp8", {}, "expected an object"),
    ({"quant_method": "fp8"}, {"method": "lora", "engine": "trace"}, "neither traced nor profiled"),
]


@pytest.mark.parametrize("quantization, fields, message", REFUSED)
def test_what_is_not_understood_is_refused_in_a_sentence(quantization, fields, message):
    with pytest.raises(memplan.UsageError, match=message):
        memplan.plan(config(quantization), **fields)


def test_the_16_bit_model_can_be_asked_for():
    asked = memplan.plan(config({"quant_method": "fp8"}), method="full", checkpoint_quant="none", gpu="h200")
    assert asked.gpus[0].verdict == "fits"
    assert asked.peak.allocated_bytes == memplan.plan(LLAMA, method="full", gpu="h200").peak.allocated_bytes
    with pytest.raises(memplan.UsageError, match="has no quantization_config"):
        memplan.plan(LLAMA, checkpoint_quant="fp8")


def test_another_method_keeps_the_checkpoint():
    from memplan.planner.answers.fit.suggest import under

    _, setup = api.request(config({"quant_method": "gptq", "bits": 4}), method="lora")
    assert under(setup, "adalora").checkpoint_quant == "gptq"


def test_a_name_says_how_a_copy_is_stored():
    found = memplan.plan("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", method="lora")
    assert (found.setup.checkpoint_quant, found.setup.quant_type) == ("bitsandbytes", "nf4")
    dynamic = memplan.plan("unsloth/Qwen3-14B-unsloth-bnb-4bit", method="lora")
    assert dynamic.setup.checkpoint_quant == "bitsandbytes-mixed"
    for name, bits in (("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", 4), ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", 8)):
        assert quantized.read(api.find(name).config).bits == bits
    assert memplan.plan("Qwen/Qwen3-8B-FP8", method="lora").not_modelled


def test_a_vision_language_config_says_it_of_the_whole():
    base = {"model_type": "llava", "text_config": LLAMA, "vision_config": {"hidden_size": 1}}
    quantization, layer = STORED["gptq 8"]
    assert weights(memplan.plan(config(quantization, base), method="inference")) == 2 * layer + PLAIN


def test_setups_name_every_format():
    assert set(typing.get_args(CheckpointQuant)) == {"none", *FORMATS}


@pytest.mark.trace
def test_a_trace_of_a_4_bit_checkpoint_has_its_step():
    """The trace quantizes what the checkpoint has packed: equal once it is loaded."""
    pytest.importorskip("bitsandbytes")
    traced = memplan.trace(config(NF4), method="lora")
    assert traced.step_peak == memplan.trace(LLAMA, method="qlora").step_peak
