"""Known costs, derived by the trace: AdaLoRA's importance buffers, and what QLoRA's double quantization
saves.
"""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from memplan.planner.inputs.setup import resolve  # noqa: E402

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}
RANK, LAYERS = 12, 14  # seven linear layers in each of two


def setup_of(method, **changes):
    fields = {
        "method": method,
        "recipe": "raw",
        "micro_batch": 2,
        "sequence_length": 16,
        "device": "cpu",
        "optimizer": "adamw_torch_fused",
    }
    return resolve({**fields, **changes})


def adapter_elements(model):
    return sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)


def test_adalora_with_pruning_costs_twelve_bytes_to_an_adapter_parameter(held):
    with_pruning = setup_of("adalora", init_rank=RANK, importance_buffers=True)
    without = with_pruning.replaced(importance_buffers=False)
    pruned, plain = held.traced(LLAMA, with_pruning), held.traced(LLAMA, without)
    lora = held.traced(LLAMA, setup_of("lora", rank=RANK))
    # Beyond LoRA of rank init_r, each of the 14 layers has a vector of it (lora_E) and a scalar that peft
    # 0.21 trains too (ranknum).
    assert plain.trainable - lora.trainable == LAYERS * (RANK + 1)
    adapter = pruned.trainable - LAYERS  # no importance is kept of ranknum
    assert pruned.optimizer_states - plain.optimizer_states == 12 * adapter
    more = LAYERS * (RANK + 1)  # fp32: gradient, two moments, and one step to a tensor
    assert plain.gradients - lora.gradients == 4 * more
    assert plain.optimizer_states - lora.optimizer_states == 8 * more + 2 * LAYERS * 4


def test_the_rank_allocator_itself_holds_them():
    """peft 0.21 tuners/adalora/layer.py RankAllocator.update_ipt: ipt, exp_avg_ipt and exp_avg_unc, one of
    each to a parameter.
    """
    from memplan.planner.run import step
    from memplan.planner.run.build import build
    from memplan.planner.run.model import quiet
    from memplan.planner.run.owners import importance_buffers, tensors

    with quiet():
        built = build(LLAMA, setup_of("adalora", init_rank=RANK, importance_buffers=True), "cpu")
        for index in range(2):
            step.run(built, step.Unwatched(), index)
    buffers = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes()
        for _, t in tensors(importance_buffers(built.model))
    }
    assert sum(buffers.values()) == 12 * adapter_elements(built.model)


def test_double_quantization_saves_0_373_bits_to_a_parameter(held):
    """QLoRA, section 3: 32/64 bits to a parameter become 8/64 + 32/(64 x 256)."""
    pytest.importorskip("bitsandbytes")
    wide = {
        **LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    }
    single, double = (held.traced(wide, setup_of("qlora", double_quant=on)) for on in (False, True))
    quantized = 2 * sum(
        nbytes
        for name, nbytes in single.weights.items()
        if nbytes and name.endswith("_proj.base_layer.weight")
    )
    assert quantized == 2 * (4 * 4096 * 4096 + 3 * 4096 * 8192)

    def constants(held_bytes, *parts):
        return sum(nbytes for name, nbytes in held_bytes.weights.items() if name.endswith(parts))

    blocks = constants(single, "weight.absmax") - constants(double, "weight.absmax", "weight.nested_absmax")
    assert 8 * blocks / quantized == 32 / 64 - 8 / 64 - 32 / (64 * 256) == pytest.approx(0.373, abs=1e-4)
    tables = constants(double, "weight.nested_code", "weight.nested_offset", "weight.offset")
    assert sum(single.weights.values()) - sum(double.weights.values()) == blocks - tables
    assert 8 * tables / quantized < 0.001
