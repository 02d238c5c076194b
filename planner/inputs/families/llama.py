"""Families that descend from Llama: rotary embedding, RMS norms, a gated MLP (transformers 5.23,
models/<model_type>/modeling_*.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from memplan.planner.inputs.families.blocks import (
    FULL,
    SLIDING,
    assemble,
    final_norm,
    gated_mlp,
    gqa,
    norms,
    pre_norm,
    qk_norms,
    rotary_buffers,
    windows,
)
from memplan.planner.inputs.families.fields import Fields
from memplan.planner.inputs.spec import Attention, Dropouts, Extra, Layer, Linear, Mlp, ModelSpec, Norm


def llama(c: Fields) -> ModelSpec:
    """Llama 1, 2, 3, Code Llama, Vicuna, TinyLlama, Yi, SmolLM 1 and 2, DeepSeek LLM: one architecture."""
    bias = c.flag("attention_bias", False)
    layer = Layer(
        gqa(c, qkv_bias=bias, o_bias=bias), gated_mlp(c, bias=c.flag("mlp_bias", False)), pre_norm(c)
    )
    return assemble(c, "LlamaForCausalLM", [layer] * c.layers())


def mistral(c: Fields) -> ModelSpec:
    """Mistral 7B, Nemo, Small: Llama with a sliding window (4096 unless the config says null)."""
    window = c.maybe_size("sliding_window") if "sliding_window" in c.config else 4096
    layer = Layer(gqa(c, kv_default=8, window=window), gated_mlp(c), pre_norm(c))
    return assemble(c, "MistralForCausalLM", [layer] * c.layers())


def _qwen_windows(c: Fields, count: int) -> list[int | None]:
    """Qwen's windows: none unless use_sliding_window, and then only above max_window_layers."""
    if not c.flag("use_sliding_window", False):
        return [None] * count
    first = c.size("max_window_layers", default=28, least=0)
    return windows(c, count, 4096, lambda i: i >= first)


def qwen2(c: Fields) -> ModelSpec:
    """Qwen 1.5, 2, 2.5: Llama with biases on q, k and v."""
    attention, mlp, pair = gqa(c, kv_default=32, qkv_bias=True), gated_mlp(c), pre_norm(c)
    return assemble(
        c,
        "Qwen2ForCausalLM",
        [Layer(replace(attention, window=w), mlp, pair) for w in _qwen_windows(c, c.layers())],
    )


def qwen3(c: Fields) -> ModelSpec:
    """Qwen 3: norms on the heads of q and k, head size 128 unless the config says otherwise, no biases."""
    attention, mlp, pair = qwen3_attention(c, kv_default=32, head_dim=128), gated_mlp(c), pre_norm(c)
    return assemble(
        c,
        "Qwen3ForCausalLM",
        [Layer(replace(attention, window=w), mlp, pair) for w in _qwen_windows(c, c.layers())],
    )


def qwen3_attention(c: Fields, kv_default: int, head_dim: int | None) -> Attention:
    """Grouped-query attention with an RMS norm on each head of q and k."""
    bias = c.flag("attention_bias", False)
    attention = gqa(c, kv_default=kv_default, head_dim=head_dim, qkv_bias=bias, o_bias=bias)
    return replace(attention, norms=qk_norms(attention.heads, attention.kv_heads, attention.head_dim))


def smollm3(c: Fields) -> ModelSpec:
    """SmolLM 3: every fourth layer has no rotary embedding (no_rope_layers marks with 1 the layers that do
    have it).
    """
    count, bias = c.layers(), c.flag("attention_bias", False)
    attention, mlp, pair = (
        gqa(c, kv_default=4, qkv_bias=bias, o_bias=bias),
        gated_mlp(c, bias=c.flag("mlp_bias", False)),
        pre_norm(c),
    )
    marks, interval = c.config.get("no_rope_layers"), c.size("no_rope_layer_interval", default=4)
    if marks is None:
        marks = [int((i + 1) % interval != 0) for i in range(count)]
    if not isinstance(marks, list) or len(marks) < count or any(mark not in (0, 1) for mark in marks):
        c.refuse("no_rope_layers", marks, f"a list of {count} zeros and ones")
    sliding = (
        windows(c, count, None, lambda i: not marks[i])
        if c.flag("use_sliding_window", False)
        else [None] * count
    )
    turned = [
        replace(attention, rotary_dim=attention.rotary_dim if marks[i] else 0, window=sliding[i])
        for i in range(count)
    ]
    return assemble(c, "SmolLM3ForCausalLM", [Layer(each, mlp, pair) for each in turned], tied=True)


def granite(c: Fields) -> ModelSpec:
    """Granite 3: Llama with numbers that scale the embeddings, what each branch adds, and the logits."""
    bias = c.flag("attention_bias", False)
    mlp = gated_mlp(c, bias=c.flag("mlp_bias", False))
    layer = Layer(gqa(c, qkv_bias=bias, o_bias=bias), mlp, pre_norm(c), scaled_branches=True)
    return assemble(c, "GraniteForCausalLM", [layer] * c.layers(), scaled_embedding=True, scaled_logits=True)


def olmo(c: Fields) -> ModelSpec:
    """OLMo 1: layer norms without weights, computed in float32."""
    bias = c.flag("attention_bias", False)
    attention = gqa(c, qkv_bias=bias, o_bias=bias, rotary="half_float32")
    layer = Layer(attention, gated_mlp(c), pre_norm(c, "layer", weight=False, style="float32"))
    return assemble(
        c,
        "OlmoForCausalLM",
        [layer] * c.layers(),
        final=final_norm(c, kind="layer", weight=False, style="float32"),
    )


def _olmo_layer(c: Fields) -> Layer:
    """OLMo 2 and 3: norms on the outputs of attention and MLP, and on all of q and all of k at once."""
    bias = c.flag("attention_bias", False)
    attention = gqa(c, qkv_bias=bias, o_bias=bias, rotary="half_float32")
    a, k, d = attention.heads, attention.kv_heads, attention.head_dim
    own = (
        Norm("self_attn.q_norm", a * d, position="q", style="late_cast"),
        Norm("self_attn.k_norm", k * d, position="k", style="late_cast"),
    )
    pair = norms(
        c,
        ("post_attention_layernorm", "post_attention"),
        ("post_feedforward_layernorm", "post_mlp"),
        style="late_cast",
    )
    return Layer(replace(attention, norms=own), gated_mlp(c), pair)


def olmo2(c: Fields) -> ModelSpec:
    """OLMo 2: norms after attention and MLP instead of before, and norms of queries and keys."""
    return assemble(
        c, "Olmo2ForCausalLM", [_olmo_layer(c)] * c.layers(), final=final_norm(c, style="late_cast")
    )


def olmo3(c: Fields) -> ModelSpec:
    """OLMo 3: OLMo 2 with sliding windows in three of four layers, each kind with its own rotary
    frequencies.
    """
    base, count = _olmo_layer(c), c.layers()
    slides = windows(c, count, 4096, lambda i: (i + 1) % 4 != 0)
    layers = [replace(base, attention=replace(base.attention, window=w)) for w in slides]
    extras = _rotary_by_kind(c, count, base.attention.rotary_dim, lambda i: (i + 1) % 4 != 0)
    return assemble(c, "Olmo3ForCausalLM", layers, final=final_norm(c, style="late_cast"), extras=extras)


def _rotary_by_kind(c: Fields, count: int, dim: int, slides: Callable[[int], bool]) -> tuple[Extra, ...]:
    """Rotary buffers of Gemma 3 and OLMo 3: one pair for each kind of layer that the model has."""
    listed = c.names("layer_types", count, (FULL, SLIDING))
    kinds = set(listed) if listed else {SLIDING if slides(i) else FULL for i in range(count)}
    return tuple(
        extra for kind in sorted(kinds) for extra in rotary_buffers(dim, f"model.rotary_emb.{kind}_")
    )


def gemma(c: Fields) -> ModelSpec:
    """Gemma 1: tied embeddings that are scaled, head size 256, the tanh approximation of GELU whatever
    `hidden_act` says of gelu.
    """
    bias = c.flag("attention_bias", False)
    activation = c.activation("hidden_act", default="gelu_pytorch_tanh")
    mlp = gated_mlp(c, activation="gelu_pytorch_tanh" if activation == "gelu" else activation)
    attention = gqa(c, kv_default=16, head_dim=256, qkv_bias=bias, o_bias=bias)
    layer = Layer(attention, mlp, pre_norm(c, style="gemma"))
    extras = (*_SCALE, *rotary_buffers(attention.rotary_dim))
    return assemble(
        c,
        "GemmaForCausalLM",
        [layer] * c.layers(),
        tied=True,
        final=final_norm(c, style="gemma"),
        extras=extras,
        scaled_embedding=True,
    )


def _gemma_norms(c: Fields) -> tuple[Norm, ...]:
    """Gemma 2 and 3: a norm before and after both attention and MLP."""
    return norms(
        c,
        ("input_layernorm", "input"),
        ("post_attention_layernorm", "post_attention"),
        ("pre_feedforward_layernorm", "pre_mlp"),
        ("post_feedforward_layernorm", "post_mlp"),
        style="gemma",
    )


_SCALE = (Extra("model.embed_tokens.embed_scale", (), "buffer"),)


def gemma2(c: Fields) -> ModelSpec:
    """Gemma 2: soft-capped scores (for which SDPA has no way) and logits, a sliding window in every other
    layer.
    """
    bias, count = c.flag("attention_bias", False), c.layers()
    cap = c.softcap("attn_logit_softcapping", 50.0)
    attention = gqa(c, kv_default=4, head_dim=256, qkv_bias=bias, o_bias=bias, softcap=cap, sdpa=False)
    mlp, four = (
        gated_mlp(c, activation=c.activation("hidden_activation", default="gelu_pytorch_tanh")),
        _gemma_norms(c),
    )
    layers = [
        Layer(replace(attention, window=w), mlp, four) for w in windows(c, count, 4096, lambda i: i % 2 == 0)
    ]
    extras = (*_SCALE, *rotary_buffers(attention.rotary_dim))
    return assemble(
        c,
        "Gemma2ForCausalLM",
        layers,
        tied=True,
        final=final_norm(c, style="gemma"),
        extras=extras,
        scaled_embedding=True,
        logit_softcap=c.softcap("final_logit_softcapping", 30.0),
    )


def gemma3(c: Fields) -> ModelSpec:
    """Gemma 3's text model: five sliding layers to one full, norms on q and k. Google's configs omit the
    class defaults.
    """
    bias, count = c.flag("attention_bias", False), c.layers()
    pattern = c.size("sliding_window_pattern", "_sliding_window_pattern", default=6)
    attention = gqa(
        c,
        kv_default=4,
        head_dim=256,
        assumed=8,
        qkv_bias=bias,
        o_bias=bias,
        softcap=c.softcap("attn_logit_softcapping", None),
    )
    attention = replace(
        attention, norms=qk_norms(attention.heads, attention.kv_heads, attention.head_dim, style="gemma")
    )
    mlp, four = (
        gated_mlp(c, activation=c.activation("hidden_activation", default="gelu_pytorch_tanh")),
        _gemma_norms(c),
    )

    def slides(i: int) -> bool:
        return (i + 1) % pattern != 0

    layers = [Layer(replace(attention, window=w), mlp, four) for w in windows(c, count, 4096, slides)]
    extras = (*_SCALE, *_rotary_by_kind(c, count, attention.rotary_dim, slides))
    return assemble(
        c,
        "Gemma3ForCausalLM",
        layers,
        tied=True,
        final=final_norm(c, style="gemma"),
        extras=extras,
        scaled_embedding=True,
        vocab=c.size("vocab_size", assumed=262208),
        logit_softcap=c.softcap("final_logit_softcapping", None),
    )


def phi3(c: Fields) -> ModelSpec:
    """Phi 3, 3.5 and 4: Llama with q, k, v in one matrix and gate, up in another."""
    hidden, inner = c.size("hidden_size"), c.size("intermediate_size")
    a, k, d = c.heads()
    linears = (
        Linear("self_attn.qkv_proj", hidden, (a + 2 * k) * d),
        Linear("self_attn.o_proj", a * d, hidden),
    )
    attention = Attention(
        a, k, d, linears, window=c.maybe_size("sliding_window"), rotary_dim=c.rotary(d), rotary_joined=True
    )
    fused = (Linear("mlp.gate_up_proj", hidden, 2 * inner), Linear("mlp.down_proj", inner, hidden))
    mlp = Mlp(inner, fused, activation=c.activation("hidden_act", default="silu"), fused_gate_up=True)
    drop = c.fraction("resid_pdrop")
    return assemble(
        c,
        "Phi3ForCausalLM",
        [Layer(attention, mlp, pre_norm(c))] * c.layers(),
        dropouts=Dropouts(attention=c.fraction("attention_dropout"), attention_output=drop, mlp_output=drop),
    )
