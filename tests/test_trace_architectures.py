"""Architectures of transformers, none with code of ours: what the trace says a step holds is what the real
tiny model holds on the CPU.
"""

import random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from transformers import CONFIG_MAPPING  # noqa: E402

from memplan.planner.formula.engine import plan  # noqa: E402
from memplan.planner.inputs.models import find  # noqa: E402
from memplan.planner.inputs.setup import resolve  # noqa: E402
from memplan.planner.inputs.sounds import is_speech  # noqa: E402
from memplan.planner.tables.errors import UsageError  # noqa: E402
from memplan.planner.trace.device.target import target_of  # noqa: E402
from memplan.planner.trace.events.record import BALANCED, record  # noqa: E402

# Two layers of 32: each config class takes the keys that it knows, in its parts (text, vision) too.
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "sliding_window": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "d_model": 32,
}
TINY_PART = {
    **TINY,
    "depth": 2,
    "embed_dim": 32,
    "num_heads": 4,
    "out_hidden_size": 32,
    "image_size": 28,
    "patch_size": 14,
    "encoder_attention_heads": 4,
}
MROPE = {
    "text_config": {
        **{key: TINY[key] for key in list(TINY)[:5]},
        "vocab_size": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }
}
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
LATENT = {"num_key_value_heads": 4}  # multi-head latent attention has as many key as query heads
SPECIAL = {
    "bamba": {**MAMBA2, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "falcon_h1": {**MAMBA2, "mamba_d_ssm": 64, "mamba_n_groups": 1, "mamba_chunk_size": 16},
    "gemma3n_text": {
        "vocab_size_per_layer_input": 128,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4_text": {
        "vocab_size_per_layer_input": 128,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "global_head_dim": 8,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {**MAMBA2, "layer_types": ["mamba", "attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {
        "num_key_value_heads": 4,
        "num_layers": 2,
        "zero_expert_num": 2,
        "moe_topk": 2,
        "ffn_hidden_size": 64,
        "expert_ffn_hidden_size": 16,
    },
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1},
    "plbart": {"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    "qwen2_5_vl": MROPE,
    "qwen2_vl": MROPE,
    "whisper": {"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    "xlnet": {"d_head": 8},
    "zaya": {"num_experts_per_tok": 1},
    **dict.fromkeys(
        (
            "axk1",
            "axk2",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "hy_v4",
            "kimi_linear",
            "minicpm3",
            "youtu",
        ),
        LATENT,
    ),
    "dots3_note_text": {**LATENT, "per_layer_config": {}},
}

_VISION_LANGUAGE = """aya_vision gemma3 idefics3 internvl kimi_k25 llama4 llava llava_next mistral3 mllama
ovis2 paligemma qwen2_5_vl qwen2_vl qwen3_5 qwen3_vl qwen3_vl_moe smolvlm"""
VISION_LANGUAGE = _VISION_LANGUAGE.split()
_CAUSAL = """
afmoe apertus arcee aria_text axk1 axk2 bailing_hybrid bamba bart beam bert bert-generation big_bird
bigbird_pegasus biogpt bitnet blenderbot blenderbot-small bloom camembert codegen cohere cohere2 cohere2_moe
cpmant ctrl cwm data2vec-text deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 diffllama doge dots1
dots3_note_text electra emu3 ernie ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon falcon_h1 falcon_mamba
flex_olmo flint fuyu gemma gemma2 gemma3_text gemma3n_text gemma4_text gemma4_unified gemma4_unified_text glm
glm4 glm4_moe glm4_moe_lite glm_moe_dsa got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese
gpt_oss gptj granite granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared helium hrm_text
hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 hyperclovax inkling2_text inkling_text internlm3 iquestcoder jais2
jamba jetmoe kimi_linear kolibri1 laguna lfm2 lfm2_moe lfm3 llama llama4_text mamba mamba2 marian mbart
megatron-bert mellum mimo_v2_flash minicpm3 minimax minimax_m2 minimax_m3_vl_text ministral ministral3 mistral
mixtral modernbert-decoder moshi moss_transcribe_diarize mpt mvp nanochat nemotron nemotron_h olmo olmo2 olmo3
olmo_hybrid olmoe openai-gpt opt pegasus persimmon phi phi3 phi4_multimodal phimoe plbart prophetnet qwen2
qwen2_moe qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen4_exp qwen4_exp_text recurrent_gemma
rembert roberta roberta-prelayernorm roc_bert roformer rwkv seed_oss smollm3 solar_open stablelm starcoder2
trocr vaultgemma whisper xglm xlm xlm-roberta xlm-roberta-xl xlnet xlstm youtu zaya
"""
ARCHITECTURES = sorted({*VISION_LANGUAGE, *_CAUSAL.split()})

DATA_DEPENDENT = {"blt": "nonzero"}
"""Architectures whose shapes depend on the values of tensors, which meta tensors do not have: refused with
the library's reason. Blt cuts its bytes into patches where a trained model of their entropy says.
"""

ROUTED = ("longcat_flash",)
"""Architectures whose saved tensors depend on which experts a router chooses: the trace takes every expert
equally often.
"""

FULL = {"method": "full", "recipe": "raw", "weight_dtype": "float32", "optimizer": "adamw_torch_fused"}
SETUPS = {
    "full": FULL,
    "bf16": {**FULL, "weight_dtype": "bfloat16", "attention": "eager"},
    "checkpointed": {**FULL, "checkpointing": "non_reentrant"},
    "lora": {"method": "lora", "rank": 4, "padded": True, "targets": "all-linear"},
}
LONG = {
    "kimi_linear",
    "nemotron_h",
    "prophetnet",
    "rwkv",
    "xlstm",
    "bigbird_pegasus",
}  # seconds each: their layers loop in Python


def config_of(model_type):
    """A tiny config of the family, in the keys that its own class knows."""
    return {"model_type": model_type, **_part(CONFIG_MAPPING[model_type](), TINY)}


def _part(config, sizes):
    known = {*config.to_dict(), *getattr(config, "attribute_map", {})}
    made = {key: value for key, value in sizes.items() if key in known}
    special = SPECIAL.get(config.model_type, {})
    made |= special
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if part is not None:
            made[name] = {"model_type": part.model_type, **_part(part, TINY_PART), **special.get(name, {})}
    return made


def setup_of(name):
    return resolve({**SETUPS[name], "micro_batch": 2, "sequence_length": 16, "device": "cpu"})


def sampled(names, always=(), share=3, seed=7):
    """A seeded third of `names`, and `always`, run in every suite; the rest is slow."""
    chosen = {*always, *random.Random(seed).sample(sorted(set(names) - LONG), len(names) // share)}
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names]


def test_the_list_is_long_enough():
    installed = [name for name in ARCHITECTURES if name in CONFIG_MAPPING]
    assert len(installed) >= 40 and "deepseek_v3" in installed and set(VISION_LANGUAGE) & set(installed)


@pytest.mark.parametrize(
    "model_type", sampled(ARCHITECTURES, always=("deepseek_v3", "qwen2_vl", "llama", "falcon", "diffllama"))
)
def test_a_full_step_holds_what_the_real_one_holds(model_type, held):
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    config, setup = config_of(model_type), setup_of("full")
    setup = setup.with_(task="seq2seq") if is_speech(config) else setup
    assert held.traced(config, setup).differences(held.real(config, setup)) == {}


_FAMILIES = """bamba bloom cohere2 deepseek_v3 diffllama falcon gemma2 gemma3_text glm4_moe gpt2 gpt_neox
gpt_oss gptj granitemoe jamba llama mamba2 minimax mixtral mpt nemotron olmo2 olmoe opt persimmon phi phi3
qwen2 qwen2_vl qwen3 qwen3_moe qwen3_next recurrent_gemma rwkv smollm3 stablelm starcoder2"""
VARIANTS = [
    (family, name)
    for family in _FAMILIES.split()
    for name in ("bf16", "checkpointed", "lora")
    if (family, name) != ("mamba2", "lora")
]  # peft: no out_proj of Mamba


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        pytest.param(*variant, marks=[] if number % 9 == 0 else pytest.mark.slow)
        for number, variant in enumerate(VARIANTS)
    ],
)
def test_so_do_other_dtypes_checkpointing_and_adapters(model_type, name, held):
    config, setup = config_of(model_type), setup_of(name)
    assert held.traced(config, setup).differences(held.real(config, setup)) == {}


@pytest.mark.parametrize("model_type", sorted(DATA_DEPENDENT))
def test_shapes_that_depend_on_values_are_refused_with_the_reason(model_type, held):
    with pytest.raises(UsageError, match=DATA_DEPENDENT[model_type]) as caught:
        held.traced(config_of(model_type), setup_of("full"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["full", "lora"])
@pytest.mark.parametrize("model_type", ROUTED)
def test_a_router_that_decides_shapes_is_traced_balanced(model_type, name, held, monkeypatch):
    config, setup = config_of(model_type), setup_of(name)
    found = held.traced(config, setup)
    log, facts = record(config, setup, target_of(setup))
    assert facts.warnings == (BALANCED,)
    chosen = torch.topk

    def balanced(scores, k, dim=-1, **options):
        values, places = chosen(scores, k, dim=dim, **options)
        return values, (torch.arange(places.numel()) % scores.shape[dim]).view(places.shape)

    monkeypatch.setattr(torch, "topk", balanced)
    assert found.differences(held.real(config, setup)) == {}


def test_the_comparison_sees_a_missing_storage(held):
    config, setup = config_of("llama"), setup_of("full")
    found = held.traced(config, setup)
    found.saved[next(iter(found.saved))] -= 1
    assert "saved" in found.differences(held.real(config, setup))


def test_an_adapter_that_the_library_cannot_run_is_refused_by_both_engines_with_its_place(held):
    """Phi-MoE's router is a linear layer that returns a tuple: PEFT wraps it under all-linear, and the real
    step fails in it too.
    """
    config, setup = config_of("phimoe"), setup_of("lora")
    with pytest.raises(
        UsageError,
        match=r"'tuple' object has no attribute 'dtype' in .*layers\.0\.mlp\.router \(peft's Linear\)",
    ):
        held.traced(config, setup)
    with pytest.raises(AttributeError, match="'tuple' object has no attribute 'dtype'"):
        held.real(config, setup)
    with pytest.raises(UsageError, match="all-linear covers mlp.router"):
        plan(find("phi-3.5-moe").spec(), resolve({"method": "lora"}))
