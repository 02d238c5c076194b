"""Llama 4 as training files have it: experts as Linear layers, a loss without logits, attention that it runs;
and experts in 4 bits beside layers of the same names.
"""

from __future__ import annotations

import pytest

for library in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(library)

import torch  # noqa: E402

import memplan  # noqa: E402
from memplan.planner.inputs.models import find  # noqa: E402
from memplan.planner.run.linear_experts import linearize  # noqa: E402
from memplan.planner.run.model import lacks_flash, skeleton  # noqa: E402

LLAMA4 = {
    "model_type": "llama4_text",
    "hidden_size": 64,
    "intermediate_size": 32,
    "intermediate_size_mlp": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 1,
    "attention_chunk_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
GEMMA4 = {
    "model_type": "gemma4_text",
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 2,
    "num_kv_shared_layers": 0,
    "head_dim": 16,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 0,
    "vocab_size": 256,
    "vocab_size_per_layer_input": 256,
    "sliding_window": 32,
}


def test_the_name_of_a_copy_says_that_its_experts_are_linear():
    copy = find("axolotl-quants/Llama-4-Scout-17B-16E-Linearized-bnb-nf4-bf16")
    assert copy.name == "llama-4-scout" and copy.config["linear_experts"] is True
    assert "linear_experts" not in find("llama-4-scout").config
    assert copy.config["quantization_config"]["bnb_4bit_quant_storage"] == "bfloat16"  # FSDP cuts them


def test_linear_experts_compute_what_fused_ones_do():
    """With the same weights, on a CPU: E experts over rows sorted by expert."""
    from transformers import Llama4TextConfig
    from transformers.models.llama4.modeling_llama4 import Llama4TextExperts

    fused = Llama4TextExperts(Llama4TextConfig(**{k: v for k, v in LLAMA4.items() if k != "model_type"}))
    torch.manual_seed(0)
    for parameter in fused.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    holder = torch.nn.ModuleDict({"experts": fused})
    linearize(holder)
    linear = holder["experts"]
    gate, up = fused.gate_up_proj.detach().chunk(2, dim=-1)
    for i in range(LLAMA4["num_local_experts"]):
        linear.gate_projs[i].weight.data = gate[i].T.contiguous()
        linear.up_projs[i].weight.data = up[i].T.contiguous()
        linear.down_projs[i].weight.data = fused.down_proj.detach()[i].T.contiguous()
    rows = torch.randn(4 * 6, LLAMA4["hidden_size"])
    torch.testing.assert_close(linear(rows), fused(rows))


def test_linear_experts_are_as_many_parameters_and_become_4_bit():
    plain, linear = (skeleton(c, "bfloat16", "sdpa") for c in (LLAMA4, {**LLAMA4, "linear_experts": True}))
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in linear.parameters())
    setup = {"method": "qlora", "targets": ("q_proj",), "sequence_length": 32, "loss": "fused"}
    fused, packed = (memplan.plan(c, **setup) for c in (LLAMA4, {**LLAMA4, "linear_experts": True}))
    experts = 2 * 4 * 3 * 64 * 32
    less = fused.moment("load").components["weights"] - packed.moment("load").components["weights"]
    assert less >= experts * (2 - 0.75)  # 16 bit against 4 with an absmax of fp32 for 64


def test_flash_attention_is_known_not_to_run():
    assert "Llama4ForCausalLM" in lacks_flash(LLAMA4)
    assert lacks_flash({**GEMMA4, "global_head_dim": 512}) == "heads of size 512"
    assert lacks_flash(GEMMA4) == ""


def test_a_file_with_flash_attention_that_does_not_run_says_what_is_assumed(tmp_path, capsys):
    import json

    from memplan.cli.main import run

    (tmp_path / "config.json").write_text(json.dumps({**LLAMA4, "architectures": ["Llama4ForCausalLM"]}))
    file = tmp_path / "train.yaml"
    file.write_text(
        f"base_model: {tmp_path}\nadapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_modules: [q_proj]\n"
        "sequence_len: 32\nmicro_batch_size: 1\nattn_implementation: flash_attention_2\nbf16: true\n"
        "datasets: [{path: x, type: alpaca}]\n"
    )
    assert run([str(file), "--json"]) in (0, 1)
    document = json.loads(capsys.readouterr().out)
    assert document["setup"]["attention"] == "sdpa"
    assert any("Llama4ForCausalLM" in text and "sdpa is assumed" in text for text in document["warnings"])


def test_what_holds_experts_in_4_bits_gets_no_adapter():
    """Gemma 4 has a dense `down_proj` beside its experts': PEFT alone refuses what holds the latter."""
    setup = {
        "method": "qlora",
        "targets": ("q_proj", "down_proj"),
        "sequence_length": 32,
        "recipe": "axolotl",
    }
    found = memplan.plan(GEMMA4, quantize_experts=True, **setup)
    names = [row.name for row in found.moment("load").rows]
    assert any("parametrizations" in name for name in names)
    assert not any("parametrizations" in name and "lora_" in name for name in names)
    assert any("mlp.down_proj.lora_A" in name for name in names)
