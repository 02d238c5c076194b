"""Mixtures of experts (transformers 5.23, models/<model_type>/modeling_*.py): each expert's matrices are
slices of one 3-D parameter.
"""

from __future__ import annotations

from dataclasses import replace

from memplan.planner.inputs.families.blocks import assemble, gated_mlp, gqa, pre_norm, windows
from memplan.planner.inputs.families.fields import MOST_HEADS, Fields
from memplan.planner.inputs.families.llama import qwen3_attention
from memplan.planner.inputs.spec import Attention, Layer, Linear, Mlp, ModelSpec, Moe, Norm, Rotary


def _experts(
    c: Fields, count: int, inner: int, prefix: str = "mlp.experts"
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The fused gate and up matrices and the down matrices of all experts, output features first."""
    hidden = c.size("hidden_size")
    return (
        (f"{prefix}.gate_up_proj", (count, 2 * inner, hidden)),
        (f"{prefix}.down_proj", (count, hidden, inner)),
    )


def _moe(c: Fields, *count_keys: str, inner: str, gate: str = "mlp.gate", prefix: str = "mlp.experts") -> Moe:
    """Experts and the router's matrix, with the number of experts under the first of `count_keys` that is
    present.
    """
    count = c.size(*count_keys)
    top = c.size("num_experts_per_tok", most=count)
    width = c.size(inner)
    router = ((f"{gate}.weight", (count, c.size("hidden_size"))),)
    return Moe(
        count,
        top,
        width,
        _experts(c, count, width, prefix),
        router,
        activation=c.activation("hidden_act", default="silu"),
    )


def mixtral(c: Fields) -> ModelSpec:
    """Mixtral: Mistral with eight experts of which two run."""
    moe = _moe(c, "num_local_experts", "num_experts", inner="intermediate_size")
    layer = Layer(gqa(c, kv_default=8, window=c.maybe_size("sliding_window")), moe, pre_norm(c))
    return assemble(c, "MixtralForCausalLM", [layer] * c.layers())


def olmoe(c: Fields) -> ModelSpec:
    """OLMoE: 64 small experts, norms over all of q and all of k."""
    bias = c.flag("attention_bias", False)
    attention = gqa(c, qkv_bias=bias, o_bias=bias)
    a, k, d = attention.heads, attention.kv_heads, attention.head_dim
    own = (Norm("self_attn.q_norm", a * d, position="q"), Norm("self_attn.k_norm", k * d, position="k"))
    moe = _moe(c, "num_experts", "num_local_experts", inner="intermediate_size")
    return assemble(
        c, "OlmoeForCausalLM", [Layer(replace(attention, norms=own), moe, pre_norm(c))] * c.layers()
    )


def _qwen_layers(c: Fields, attention: Attention, moe: Moe) -> list[Layer]:
    """Qwen's mixtures: experts in every decoder_sparse_step-th layer except mlp_only_layers."""
    count, pair = c.layers(), pre_norm(c)
    step, dense = c.size("decoder_sparse_step", default=1), c.indices("mlp_only_layers", c.layers())
    sparse = [i not in dense and (i + 1) % step == 0 for i in range(count)]
    plain = gated_mlp(c) if not all(sparse) else None
    return [Layer(attention, moe if s or plain is None else plain, pair) for s in sparse]


def qwen2_moe(c: Fields) -> ModelSpec:
    """Qwen1.5-MoE and Qwen2-57B: experts beside one shared expert with a gate of its own."""
    attention = gqa(c, kv_default=16, qkv_bias=c.flag("qkv_bias", True))
    shared = gated_mlp(c, intermediate=c.size("shared_expert_intermediate_size"), prefix="mlp.shared_expert")
    gate = Linear("mlp.shared_expert_gate", c.size("hidden_size"), 1)
    moe = replace(_moe(c, "num_experts", inner="moe_intermediate_size"), shared=shared, shared_gate=gate)
    layers = _qwen_layers(c, attention, moe)
    if c.flag("use_sliding_window", False):
        most = c.size("max_window_layers", default=28, least=0)
        slides = windows(c, len(layers), 4096, lambda i: i % 2 == 0 and i < most)
        layers = [
            replace(layer, attention=replace(attention, window=w))
            for layer, w in zip(layers, slides, strict=True)
        ]
    # transformers 5.24 configuration_qwen2_moe.py sets sliding_window to 0 where none slides, and
    # modeling_qwen2_moe.py makes the sliding mask all the same
    unread = not c.flag("use_sliding_window", False)
    return assemble(c, "Qwen2MoeForCausalLM", layers, empty_window_mask=unread)


def qwen3_moe(c: Fields) -> ModelSpec:
    """Qwen3-30B-A3B, 235B-A22B, Coder: 128 experts, no shared one, norms on the heads of q and k."""
    attention = qwen3_attention(c, kv_default=4, head_dim=None)
    if c.flag("use_sliding_window", False):
        attention = replace(attention, window=c.size("sliding_window", default=4096))
    moe = _moe(c, "num_experts", "num_local_experts", inner="moe_intermediate_size")
    return assemble(c, "Qwen3MoeForCausalLM", _qwen_layers(c, attention, moe))


def _mla(c: Fields, rotary: Rotary) -> Attention:
    """Multi-head latent attention: keys and values expanded from one low-rank latent, rotary on a part that
    all heads share.
    """
    hidden, a = c.size("hidden_size"), c.size("num_attention_heads", most=MOST_HEADS)
    k = c.size("num_key_value_heads", default=a)
    if k != a:
        c.refuse(
            "num_key_value_heads",
            k,
            f"num_attention_heads {a}: latent attention expands keys and values for every head",
        )
    kv_rank, rope, nope, value = (
        c.size(key) for key in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    )
    q_rank = c.maybe_size("q_lora_rank")
    bias = c.flag("attention_bias", False)
    own: tuple[Norm, ...] = (Norm("self_attn.kv_a_layernorm", kv_rank, position="kv_a"),)
    if q_rank is None:
        query: tuple[Linear, ...] = (Linear("self_attn.q_proj", hidden, a * (nope + rope)),)
    else:
        query = (
            Linear("self_attn.q_a_proj", hidden, q_rank, bias),
            Linear("self_attn.q_b_proj", q_rank, a * (nope + rope)),
        )
        own = (Norm("self_attn.q_a_layernorm", q_rank, position="q_a"), *own)
    rest = (
        Linear("self_attn.kv_a_proj_with_mqa", hidden, kv_rank + rope, bias),
        Linear("self_attn.kv_b_proj", kv_rank, a * (nope + value)),
        Linear("self_attn.o_proj", a * value, hidden, bias),
    )
    return Attention(
        a, a, nope + rope, (*query, *rest), own, value_dim=value, rotary_dim=rope, kind="mla", rotary=rotary
    )


def _deepseek(c: Fields, architecture: str, first: int, corrected: bool, rotary: Rotary) -> ModelSpec:
    """DeepSeek's layout: `first` dense layers, then experts beside shared ones that always run."""
    count, attention, pair = c.layers(), _mla(c, rotary), pre_norm(c)
    dense = c.size("first_k_dense_replace", default=first, least=0)
    moe = _moe(c, "n_routed_experts", "num_local_experts", "num_experts", inner="moe_intermediate_size")
    if moe.experts % c.size("n_group", default=1):
        c.refuse("n_group", c.config.get("n_group"), f"a divisor of n_routed_experts {moe.experts}")
    shared = c.size("n_shared_experts") * moe.intermediate
    moe = replace(
        moe,
        shared=gated_mlp(c, intermediate=shared, prefix="mlp.shared_experts"),
        # transformers 5.24 modeling_deepseek_v{2,3}.py _keep_in_fp32_modules_strict: gate.weight
        router_dtype="float32",
        buffers=(("mlp.gate.e_score_correction_bias", (moe.experts,)),) if corrected else (),
    )
    plain: Mlp | None = gated_mlp(c) if dense else None
    if c.has("num_nextn_predict_layers"):
        c.notes.append(
            "the checkpoint's multi-token prediction layers are not part of the transformers model, and not "
            "counted"
        )
    return assemble(
        c, architecture, [Layer(attention, plain if plain and i < dense else moe, pair) for i in range(count)]
    )


def deepseek_v2(c: Fields) -> ModelSpec:
    """DeepSeek-V2: latent attention, and experts from a layer on that the config names."""
    return _deepseek(c, "DeepseekV2ForCausalLM", first=0, corrected=False, rotary="complex")


def deepseek_v3(c: Fields) -> ModelSpec:
    """DeepSeek-V3: as V2, with corrected expert scores and three dense layers by default."""
    rotary: Rotary = "interleaved" if c.flag("rope_interleave", True) else "half"
    return _deepseek(c, "DeepseekV3ForCausalLM", first=3, corrected=True, rotary=rotary)


def gpt_oss(c: Fields) -> ModelSpec:
    """gpt-oss: experts with biases, input features first; a learned sink for each head; a sliding window in
    every other layer.
    """
    hidden, inner, count = c.size("hidden_size"), c.size("intermediate_size"), c.layers()
    experts = c.size("num_local_experts", "num_experts")
    bias = c.flag("attention_bias", True)
    attention = gqa(
        c, kv_default=8, head_dim=64, qkv_bias=bias, o_bias=bias, sinks=True, rotary="split", sdpa=False
    )
    weights: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("mlp.experts.gate_up_proj", (experts, hidden, 2 * inner)),
        ("mlp.experts.gate_up_proj_bias", (experts, 2 * inner)),
        ("mlp.experts.down_proj", (experts, inner, hidden)),
        ("mlp.experts.down_proj_bias", (experts, hidden)),
    )
    router: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("mlp.router.weight", (experts, hidden)),
        ("mlp.router.bias", (experts,)),
    )
    top = c.size("num_experts_per_tok", "experts_per_token", most=experts)
    moe = Moe(experts, top, inner, weights, router, activation="clamped_swiglu")
    own = pre_norm(c, style="late_cast")
    layers = [
        Layer(replace(attention, window=w), moe, own) for w in windows(c, count, 128, lambda i: i % 2 == 0)
    ]
    return assemble(
        c, "GptOssForCausalLM", layers, final=Norm("model.norm", hidden, position="final", style="late_cast")
    )


def granitemoe(c: Fields) -> ModelSpec:
    """Granite 3's mixtures: Granite with experts under block_sparse_moe."""
    bias = c.flag("attention_bias", False)
    moe = _moe(
        c,
        "num_local_experts",
        inner="intermediate_size",
        gate="block_sparse_moe.router",
        prefix="block_sparse_moe.experts",
    )
    layer = Layer(gqa(c, qkv_bias=bias, o_bias=bias), moe, pre_norm(c), scaled_branches=True)
    return assemble(
        c, "GraniteMoeForCausalLM", [layer] * c.layers(), scaled_embedding=True, scaled_logits=True
    )


def phimoe(c: Fields) -> ModelSpec:
    """Phi-3.5-MoE: layer norms with biases, sixteen experts."""
    bias = c.flag("attention_bias", False)
    moe = _moe(c, "num_local_experts", inner="intermediate_size", gate="mlp.router")
    attention = gqa(c, kv_default=8, qkv_bias=bias, o_bias=bias, window=c.maybe_size("sliding_window"))
    last = Norm("model.norm", c.size("hidden_size"), "layer", bias=True, position="final")
    return assemble(
        c,
        "PhimoeForCausalLM",
        [Layer(attention, moe, pre_norm(c, "layer", bias=True))] * c.layers(),
        final=last,
        head_bias=c.flag("lm_head_bias", False),
    )
