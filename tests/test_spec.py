"""Families: each agrees with transformers on a small config of every variant, and refuses what cannot be
understood.
"""

import pytest

from memplan.planner.formula.resident.tensors import weight_tensors
from memplan.planner.inputs.families.table import FAMILIES, read_config
from memplan.planner.tables.errors import UsageError

SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 300,
    "intermediate_size": 160,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GPT = {"n_embd": 128, "n_layer": 4, "n_head": 8, "n_positions": 64, "vocab_size": 300}
MOE = {"num_local_experts": 6, "num_experts_per_tok": 2}
QWEN_MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
MLA = {
    "num_key_value_heads": 8,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 24,
    "q_lora_rank": 48,
    "n_routed_experts": 16,
    "n_shared_experts": 2,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 64,
}

# One row for each way in which a family's config changes its tensors.
VARIANTS: list[tuple[str, dict]] = [
    ("bloom", {"n_layer": 3, "n_head": 8, "hidden_size": 64, "vocab_size": 1000}),
    ("cohere", SMALL),
    ("cohere", SMALL | {"use_qk_norm": True, "attention_bias": True}),
    ("cohere2", SMALL),
    ("cohere2", SMALL | {"head_dim": 64, "sliding_window_pattern": 2}),
    ("deepseek_v2", SMALL | MLA | {"first_k_dense_replace": 1}),
    ("deepseek_v2", SMALL | MLA | {"q_lora_rank": None}),
    ("deepseek_v3", SMALL | MLA),
    ("deepseek_v3", SMALL | MLA | {"attention_bias": True, "first_k_dense_replace": 0}),
    ("falcon", SMALL),
    ("falcon", SMALL | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    (
        "falcon",
        SMALL
        | {
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
            "ffn_hidden_size": 512,
        },
    ),
    ("falcon", SMALL | {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True}),
    ("gemma", SMALL),
    ("gemma", SMALL | {"head_dim": 16, "tie_word_embeddings": False}),
    ("gemma2", SMALL),
    ("gemma3_text", SMALL),
    ("gemma3_text", SMALL | {"layer_types": ["full_attention"] * 8}),
    ("gpt2", GPT),
    ("gpt2", GPT | {"n_inner": 300, "tie_word_embeddings": False}),
    ("gpt_bigcode", GPT),
    ("gpt_bigcode", GPT | {"multi_query": False}),
    ("gpt_neox", SMALL),
    ("gpt_neox", SMALL | {"rotary_pct": 0.5, "attention_bias": False, "use_parallel_residual": False}),
    ("gpt_oss", SMALL | MOE | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    ("gptj", GPT | {"rotary_dim": 16}),
    ("granite", SMALL),
    ("granite", SMALL | {"attention_bias": True, "mlp_bias": True}),
    ("granitemoe", SMALL | MOE),
    ("llama", SMALL),
    (
        "llama",
        SMALL | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 48},
    ),
    ("llama", {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}),
    ("mistral", SMALL),
    ("mistral", SMALL | {"head_dim": 64}),
    ("mixtral", SMALL | MOE),
    ("olmo", SMALL),
    ("olmo2", SMALL),
    ("olmo3", SMALL),
    ("olmoe", SMALL | QWEN_MOE),
    ("opt", SMALL | {"ffn_dim": 512}),
    ("opt", SMALL | {"ffn_dim": 512, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    ("opt", SMALL | {"ffn_dim": 512, "enable_bias": False, "layer_norm_elementwise_affine": False}),
    ("phi", SMALL),
    ("phi", SMALL | {"qk_layernorm": True}),
    ("phi3", SMALL),
    ("phi3", SMALL | {"partial_rotary_factor": 0.75}),
    ("phimoe", SMALL | MOE),
    ("phimoe", SMALL | MOE | {"attention_bias": True, "lm_head_bias": True}),
    ("qwen2", SMALL),
    ("qwen2", SMALL | {"use_sliding_window": True, "max_window_layers": 3}),
    ("qwen2_moe", SMALL | QWEN_MOE | {"shared_expert_intermediate_size": 96}),
    (
        "qwen2_moe",
        SMALL
        | QWEN_MOE
        | {"shared_expert_intermediate_size": 96, "decoder_sparse_step": 2, "mlp_only_layers": [1]},
    ),
    ("qwen3", SMALL),
    ("qwen3", SMALL | {"head_dim": 64, "attention_bias": True}),
    ("qwen3_moe", SMALL | QWEN_MOE | {"head_dim": 64}),
    ("qwen3_moe", SMALL | QWEN_MOE | {"mlp_only_layers": [0, 7]}),
    ("smollm3", SMALL),
    ("stablelm", SMALL),
    ("stablelm", SMALL | {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True}),
    ("starcoder2", SMALL),
    ("starcoder2", SMALL | {"use_bias": False}),
]


def test_every_family_has_a_variant():
    assert {model_type for model_type, _ in VARIANTS} == set(FAMILIES)


DROPOUTS = (
    "attention_dropout",
    "hidden_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "residual_dropout",
    "embedding_dropout",
    "dropout",
)
ACTIVATIONS = ("hidden_activation", "hidden_act", "activation_function", "activation")


@pytest.mark.trace
@pytest.mark.parametrize(
    "model_type, config", VARIANTS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(VARIANTS)]
)
def test_agrees_with_transformers(model_type, config, monkeypatch):
    """Tensors, class, sliding windows, and what a training forward does: the order of linear layers, and each
    dropout's probability.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    known = transformers.AutoConfig.for_model(model_type, **config)
    config = {**config, **{key: 0.1 + 0.01 * i for i, key in enumerate(DROPOUTS) if hasattr(known, key)}}
    made = transformers.AutoConfig.for_model(model_type, **config)
    made._attn_implementation = "eager"
    real = transformers.AutoModelForCausalLM.from_config(made).train()
    spec = read_config({"model_type": model_type, **config})
    held = [*real.named_parameters(remove_duplicate=False), *real.named_buffers()]
    described = {name: shape for tensor in weight_tensors(spec) for name, shape in tensor.each()}
    assert described == {name: tuple(tensor.shape) for name, tensor in held}
    assert spec.parameters == sum(parameter.numel() for parameter in real.parameters())
    assert spec.architecture == type(real).__name__
    activation = next((getattr(made, key) for key in ACTIVATIONS if hasattr(made, key)), None)
    if activation is not None and model_type != "gpt_oss":  # whose experts have their own
        assert {layer.mlp.activation for _, layer in spec.layers} == {activation}
    if model_type != "gemma2":  # transformers gave up SDPA there, without its soft cap, after 5.17
        assert all(layer.attention.sdpa == type(real)._supports_sdpa for _, layer in spec.layers)

    expected, seen, first = [], [], 0
    for count, layer in spec.layers:
        attention = real.get_submodule(
            f"{layer.prefix}.{first}.{layer.attention.linears[0].name.partition('.')[0]}"
        )
        assert getattr(attention, "sliding_window", layer.attention.window) == layer.attention.window
        for linear in layer.linears():
            name = f"{layer.prefix}.{first}.{linear.name}"
            module = real.get_submodule(name)
            assert (type(module).__name__ == "Conv1D") == (linear.kind == "conv1d")
            module.register_forward_hook(lambda module, inputs, output, name=name: seen.append(name))
            expected.append(name)
        first += count
    dropped, dropout = [], torch.nn.functional.dropout

    def spy(tensor, p=0.5, training=True, inplace=False):
        dropped.extend([p] if training and p > 0 else [])
        return dropout(tensor, p, training, inplace)

    monkeypatch.setattr(torch.nn.functional, "dropout", spy)
    with torch.no_grad():
        real(input_ids=torch.arange(4).unsqueeze(0) + 1, use_cache=False)
    assert seen == expected
    drops = spec.dropouts
    inside = [drops.attention, drops.attention_output, drops.mlp_output]
    assert sorted(dropped) == sorted(p for p in [drops.embedding, *inside * spec.depth] if p > 0)


def llama(**changes):
    return {"model_type": "llama", **SMALL, **changes}


def test_the_order_of_linears_is_the_order_of_the_forward():
    names = [linear.name.rpartition(".")[2] for linear in read_config(llama()).layers[0][1].linears()]
    assert names == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def test_missing_key_value_heads_means_as_many_as_heads():
    config = llama()
    del config["num_key_value_heads"]
    assert read_config(config).layers[0][1].attention.kv_heads == 8


def test_a_default_that_publishers_rely_on_leaves_a_note():
    config = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    }
    spec = read_config(config)
    assert spec.parameters == 3_880_263_168
    assert any("num_attention_heads 8" in note for note in spec.notes) and any(
        "vocab_size 262208" in note for note in spec.notes
    )


@pytest.mark.parametrize(
    "key", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
)
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2", "mixtral", "gpt_neox"])
def test_a_missing_essential_size_is_an_error_and_never_a_default(model_type, key):
    config = {"model_type": model_type, **SMALL, **MOE}
    del config[key]
    with pytest.raises(UsageError, match=f"key {key} is missing, expected an integer"):
        read_config(config)


def test_a_misspelt_key_is_named():
    config = llama(hiden_size=256)
    del config["hidden_size"]
    with pytest.raises(UsageError, match="hidden_size is missing.*the config has hiden_size"):
        read_config(config)


def test_unknown_model_type_names_the_trace_engine():
    with pytest.raises(UsageError, match=r"no rule for model_type 'mamba2'.*--engine trace"):
        read_config({"model_type": "mamba2", "hidden_size": 64})


NESTED = [
    ("llava", "llama"),
    ("gemma3", "gemma3_text"),
    ("mistral3", "mistral"),
    ("qwen3_vl", "qwen3_vl_text"),
]


@pytest.mark.parametrize("outer, inner", NESTED)
def test_the_language_part_of_a_vision_language_config_is_read_and_said_so(outer, inner):
    text = {"model_type": inner, **SMALL}
    spec = read_config(
        {"model_type": outer, "dtype": "bfloat16", "text_config": text, "vision_config": {"hidden_size": 1}}
    )
    assert spec.hidden == 128 and spec.checkpoint_dtype == "bfloat16"
    assert f"of a {outer} config: of vision or audio parts no more than the weights" in spec.notes[0]


def test_a_flat_vision_language_config():
    spec = read_config({"model_type": "qwen2_5_vl", **SMALL, "vision_config": {"depth": 32}})
    assert spec.layers[0][1].attention.linears[0].bias and "qwen2_5_vl config" in spec.notes[0]


def test_opt_350m_has_its_projections_and_position_offset():
    config = {
        "model_type": "opt",
        **SMALL,
        "ffn_dim": 512,
        "word_embed_proj_dim": 32,
        "do_layer_norm_before": False,
    }
    spec = read_config(config)
    assert (spec.learned_positions, spec.max_positions, spec.embedding_dim, spec.final_norm) == (
        66,
        64,
        32,
        None,
    )
    assert [linear.name.rpartition(".")[2] for linear in spec.projections] == ["project_in", "project_out"]
    assert spec.layers[0][1].post_norm


def test_windows_follow_the_family():
    def windows(model_type, **changes):
        spec = read_config({"model_type": model_type, **SMALL, **changes})
        return [layer.attention.window for count, layer in spec.layers for _ in range(count)]

    assert windows("gemma2") == [4096, None] * 4
    assert windows("gemma3_text", sliding_window=8) == [8] * 5 + [None] + [8] * 2
    assert windows("mistral") == [4096] * 8
    assert windows("mistral", sliding_window=None) == [None] * 8
    assert windows("qwen2", sliding_window=4096) == [None] * 8
    assert (
        windows("qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=6)
        == [None] * 6 + [16] * 2
    )
    assert windows("llama", sliding_window=4096) == [None] * 8


def test_a_family_without_a_rule_says_how_to_get_the_answer(monkeypatch):
    config = {"model_type": "gemma4_text", "hidden_size": 64}
    with pytest.raises(UsageError, match=r"use --engine trace, which runs the transformers class itself"):
        read_config(config)
    monkeypatch.setattr("memplan.planner.inputs.families.table.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'memplan\[trace\]' for the trace"):
        read_config(config)
