"""Llama-shaped families with LayerNorm, partial rotary or parallel layers: StarCoder2, StableLM, Phi,
Cohere.
"""

from __future__ import annotations

from dataclasses import replace

from memplan.planner.inputs.families.blocks import (
    assemble,
    final_norm,
    gated_mlp,
    gqa,
    norms,
    plain_mlp,
    pre_norm,
    rotary_buffers,
    windows,
)
from memplan.planner.inputs.families.fields import Fields
from memplan.planner.inputs.spec import Dropouts, Layer, ModelSpec, Norm


def starcoder2(c: Fields) -> ModelSpec:
    """StarCoder 2: layer norms, biases everywhere, a plain MLP, grouped-query attention with rotary
    embedding.
    """
    bias = c.flag("use_bias", True)
    attention = gqa(c, kv_default=2, qkv_bias=bias, o_bias=bias, window=c.maybe_size("sliding_window"))
    activation = c.activation("hidden_act", default="gelu_pytorch_tanh")
    mlp = plain_mlp(c, "mlp.c_fc", "mlp.c_proj", c.size("intermediate_size"), activation, bias=bias)
    drop = c.fraction("residual_dropout")
    return assemble(
        c,
        "Starcoder2ForCausalLM",
        [Layer(attention, mlp, pre_norm(c, "layer", bias=True))] * c.layers(),
        tied=True,
        final=final_norm(c, kind="layer", bias=True),
        dropouts=Dropouts(c.fraction("embedding_dropout"), c.fraction("attention_dropout"), drop, drop),
    )


def stablelm(c: Fields) -> ModelSpec:
    """StableLM: layer norms with Llama's MLP; the 12B model is parallel with a norm for each head of q
    and k.
    """
    attention = gqa(c, kv_default=32, own_dim=False, qkv_bias=c.flag("use_qkv_bias", False))
    a, k, d = attention.heads, attention.kv_heads, attention.head_dim
    attention = replace(
        attention, rotary_dim=c.rotary(d, default=0.25), rotary_joined=True, rotary_kept_alive=True
    )
    if c.flag("qk_layernorm", False):
        q = tuple(Norm(f"self_attn.q_layernorm.norms.{i}", d, "layer", position="q") for i in range(a))
        own = tuple(Norm(f"self_attn.k_layernorm.norms.{i}", d, "layer", position="k") for i in range(k))
        attention = replace(attention, norms=q + own)
    parallel = c.flag("use_parallel_residual", False)
    pair = pre_norm(c, "layer", bias=True)
    layer = Layer(
        attention,
        gated_mlp(c),
        pair[:1] if parallel else pair,
        parallel=parallel,
        attention_kept_alive=True,
        named_norm=True,
    )
    return assemble(
        c,
        "StableLmForCausalLM",
        [layer] * c.layers(),
        final=final_norm(c, kind="layer", bias=True),
        dropouts=Dropouts(0.0, c.fraction("attention_dropout"), 0.0, c.fraction("hidden_dropout")),
    )


def phi(c: Fields) -> ModelSpec:
    """Phi 1, 1.5 and 2: attention and MLP in parallel on one layer norm, biases everywhere, the head
    included.
    """
    attention = gqa(c, qkv_bias=True, o_bias=True, out="dense")
    d = attention.head_dim
    attention = replace(
        attention, rotary_dim=c.rotary(d, default=0.5), rotary_joined=True, rotary_kept_alive=True
    )
    if c.flag("qk_layernorm", False):
        own = (
            Norm("self_attn.q_layernorm", d, "layer", bias=True, position="q", heads=attention.heads),
            Norm("self_attn.k_layernorm", d, "layer", bias=True, position="k", heads=attention.kv_heads),
        )
        attention = replace(attention, norms=own)
    mlp = plain_mlp(
        c,
        "mlp.fc1",
        "mlp.fc2",
        c.size("intermediate_size"),
        c.activation("hidden_act", default="gelu_new"),
        bias=True,
    )
    layer = Layer(
        attention, mlp, norms(c, ("input_layernorm", "input"), kind="layer", bias=True), parallel=True
    )
    drop = c.fraction("resid_pdrop")
    return assemble(
        c,
        "PhiForCausalLM",
        [layer] * c.layers(),
        head_bias=True,
        final=final_norm(c, "model.final_layernorm", "layer", bias=True),
        dropouts=Dropouts(c.fraction("embd_pdrop"), c.fraction("attention_dropout"), drop, drop),
    )


def cohere(c: Fields) -> ModelSpec:
    """Command R: attention and MLP in parallel on one layer norm without bias, tied embeddings, optionally a
    norm for each head.
    """
    bias = c.flag("attention_bias", False)
    attention = gqa(c, qkv_bias=bias, o_bias=bias, rotary="pairs_float32")
    if c.flag("use_qk_norm", False):
        d = attention.head_dim
        own = (
            Norm(
                "self_attn.q_norm",
                d,
                "layer",
                position="q",
                heads=attention.heads,
                per_head=True,
                style="manual",
            ),
            Norm(
                "self_attn.k_norm",
                d,
                "layer",
                position="k",
                heads=attention.kv_heads,
                per_head=True,
                style="manual",
            ),
        )
        attention = replace(attention, norms=own)
    layer = Layer(
        attention,
        gated_mlp(c),
        norms(c, ("input_layernorm", "input"), kind="layer", style="manual"),
        parallel=True,
    )
    return assemble(
        c,
        "CohereForCausalLM",
        [layer] * c.layers(),
        tied=True,
        scaled_logits=True,
        final=final_norm(c, kind="layer", style="manual"),
    )


def cohere2(c: Fields) -> ModelSpec:
    """Command R7B, Command A: Cohere with three sliding rotary layers to one full layer without positions."""
    bias, count = c.flag("attention_bias", False), c.layers()
    base, mlp = gqa(c, qkv_bias=bias, o_bias=bias, rotary="pairs_float32"), gated_mlp(c)
    one = norms(c, ("input_layernorm", "input"), kind="layer", style="manual")
    pattern = c.size("sliding_window_pattern", default=4)
    slides = windows(c, count, 4096, lambda i: (i + 1) % pattern != 0)
    layers = [
        Layer(replace(base, window=w, rotary_dim=base.rotary_dim if w else 0), mlp, one, parallel=True)
        for w in slides
    ]
    return assemble(
        c,
        "Cohere2ForCausalLM",
        layers,
        tied=True,
        scaled_logits=True,
        final=final_norm(c, kind="layer", style="manual"),
        extras=rotary_buffers(base.rotary_dim),
    )
