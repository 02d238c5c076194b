"""Families with layer norms or plain MLPs: GPT-2 and its relatives (transformers 5.23,
models/<model_type>/modeling_*.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from memplan.planner.inputs.families.blocks import (
    assemble,
    final_norm,
    gqa,
    hidden_of,
    norms,
    plain_mlp,
    pre_norm,
    rotary_buffers,
)
from memplan.planner.inputs.families.fields import Fields
from memplan.planner.inputs.spec import Attention, Dropouts, Extra, KeyValues, Layer, Linear, ModelSpec


def _gpt_layer(c: Fields, kv: int, kind: Literal["linear", "conv1d"], activation: str) -> Layer:
    """GPT-2's layer: q, k, v in one matrix (conv1d in GPT-2, linear with `kv` heads in GPT-BigCode), all with
    biases.
    """
    hidden = hidden_of(c)
    a, _, d = c.heads(kv=None, own_dim=False)
    linears = (
        Linear("attn.c_attn", hidden, (a + 2 * kv) * d, True, kind),
        Linear("attn.c_proj", hidden, hidden, True, kind),
    )
    inner = c.size("n_inner", default=4 * hidden)
    mlp = plain_mlp(
        c,
        "mlp.c_fc",
        "mlp.c_proj",
        inner,
        c.activation("activation_function", default=activation),
        bias=True,
        kind=kind,
    )
    pair = norms(c, ("ln_1", "input"), ("ln_2", "pre_mlp"), kind="layer", bias=True)
    return Layer(Attention(a, kv, d, linears), mlp, pair, prefix="transformer.h", attention_kept_alive=True)


def _gpt_dropouts(c: Fields, default: float) -> Dropouts:
    attention, residual, embedding = (
        c.fraction(key, default) for key in ("attn_pdrop", "resid_pdrop", "embd_pdrop")
    )
    return Dropouts(embedding, attention, residual, residual)


def gpt2(c: Fields) -> ModelSpec:
    """GPT-2 (and GPT-3's published sizes): learned positions, tied embeddings, transposed linear layers."""
    layer = _gpt_layer(c, c.heads(kv=None, own_dim=False)[0], "conv1d", "gelu_new")
    positions = c.size("n_positions", "max_position_embeddings")
    return assemble(
        c,
        "GPT2LMHeadModel",
        [layer] * c.layers("n_layer", "num_hidden_layers"),
        tied=True,
        final=final_norm(c, "transformer.ln_f", "layer", bias=True),
        learned_positions=positions,
        max_positions=positions,
        dropouts=_gpt_dropouts(c, 0.1),
        embedding_name="transformer.wte",
        position_name="transformer.wpe",
    )


def gpt_bigcode(c: Fields) -> ModelSpec:
    """StarCoder 1, SantaCoder: GPT-2 with one key-value head and a boolean mask table of positions x
    positions.
    """
    a = c.heads(kv=None, own_dim=False)[0]
    layer = _gpt_layer(c, 1 if c.flag("multi_query", True) else a, "linear", "gelu_pytorch_tanh")
    positions = c.size("n_positions", "max_position_embeddings")
    mask = Extra("transformer.bias", (positions, positions), "buffer", "bool")
    return assemble(
        c,
        "GPTBigCodeForCausalLM",
        [layer] * c.layers("n_layer", "num_hidden_layers"),
        tied=True,
        final=final_norm(c, "transformer.ln_f", "layer", bias=True),
        learned_positions=positions,
        max_positions=positions,
        dropouts=_gpt_dropouts(c, 0.1),
        extras=(mask,),
        embedding_name="transformer.wte",
        position_name="transformer.wpe",
    )


def gptj(c: Fields) -> ModelSpec:
    """GPT-J: attention and MLP in parallel on one norm, one table of rotary angles (in every layer before
    transformers 5.24), a bias on the head.
    """
    hidden = hidden_of(c)
    a, _, d = c.heads(kv=None, own_dim=False)
    linears = tuple(
        Linear(f"attn.{name}", hidden, hidden) for name in ("q_proj", "k_proj", "v_proj", "out_proj")
    )
    positions, rotary = (
        c.size("n_positions", "max_position_embeddings"),
        c.size("rotary_dim", default=d, most=d),
    )
    inner = c.size("n_inner", default=4 * hidden)
    mlp = plain_mlp(
        c,
        "mlp.fc_in",
        "mlp.fc_out",
        inner,
        c.activation("activation_function", default="gelu_new"),
        bias=True,
    )
    one = norms(c, ("ln_1", "input"), kind="layer", bias=True)
    attention = Attention(
        a,
        a,
        d,
        linears,
        rotary_dim=rotary,
        rotary="pairs",
        rotary_joined=True,
        rotary_kept_alive=True,
        eager="gptj",
    )
    layer = Layer(attention, mlp, one, parallel=True, prefix="transformer.h")
    angles = Extra("transformer.rotary_emb.embed_positions", (positions, rotary), "buffer", "float32")
    return assemble(
        c,
        "GPTJForCausalLM",
        [layer] * c.layers("n_layer", "num_hidden_layers"),
        max_positions=positions,
        final=final_norm(c, "transformer.ln_f", "layer", bias=True),
        head_bias=True,
        extras=(angles,),
        dropouts=_gpt_dropouts(c, 0.0),
        embedding_name="transformer.wte",
    )


def opt(c: Fields) -> ModelSpec:
    """OPT: positions offset by 2; the 350M model normalizes after the residual sum and has embeddings
    narrower than its layers.
    """
    hidden, narrow = c.size("hidden_size"), c.size("word_embed_proj_dim", default=c.size("hidden_size"))
    bias, weight, before = (
        c.flag("enable_bias", True),
        c.flag("layer_norm_elementwise_affine", True),
        c.flag("do_layer_norm_before", True),
    )
    attention = replace(
        gqa(c, qkv_bias=bias, o_bias=bias, out="out_proj", kv=None, own_dim=False),
        rotary_dim=0,
        scaled_query=True,
    )
    activation = c.activation("activation_function", default="relu")
    mlp = replace(plain_mlp(c, "fc1", "fc2", c.size("ffn_dim"), activation, bias=bias), inline=True)
    pair = norms(
        c,
        ("self_attn_layer_norm", "input" if before else "post_attention"),
        ("final_layer_norm", "pre_mlp" if before else "post_mlp"),
        kind="layer",
        weight=weight,
        bias=weight,
    )
    layer = Layer(attention, mlp, pair, prefix="model.decoder.layers", post_norm=not before)
    last = final_norm(c, "model.decoder.final_layer_norm", "layer", weight, weight)
    positions = c.size("max_position_embeddings")
    drop = c.fraction("dropout", 0.1)
    through = (
        Linear("model.decoder.project_in", narrow, hidden),
        Linear("model.decoder.project_out", hidden, narrow),
    )
    spec = assemble(
        c,
        "OPTForCausalLM",
        [layer] * c.layers(),
        tied=True,
        final=last,
        embedding_dim=narrow,
        projections=() if narrow == hidden else through,
        learned_positions=positions + 2,
        max_positions=positions,
        positions_by_row=True,
        embedding_name="model.decoder.embed_tokens",
        position_name="model.decoder.embed_positions",
        dropouts=Dropouts(0.0, c.fraction("attention_dropout"), drop, drop),
    )
    return (
        spec if before and not c.flag("_remove_final_layer_norm", False) else replace(spec, final_norm=None)
    )


def gpt_neox(c: Fields) -> ModelSpec:
    """GPT-NeoX and Pythia: attention and MLP in parallel, each on its own norm of the same input; a quarter
    of each head is rotary.
    """
    hidden, bias = c.size("hidden_size"), c.flag("attention_bias", True)
    a, _, d = c.heads(kv=None, own_dim=False)
    linears = (
        Linear("attention.query_key_value", hidden, 3 * hidden, bias),
        Linear("attention.dense", hidden, hidden, bias),
    )
    attention = Attention(
        a, a, d, linears, rotary_dim=c.rotary(d, "rotary_pct", default=0.25), rotary_joined=True
    )
    inner = c.size("intermediate_size")
    mlp = plain_mlp(
        c,
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
        inner,
        c.activation("hidden_act", default="gelu"),
        bias=True,
    )
    layer = Layer(
        attention,
        mlp,
        pre_norm(c, "layer", bias=True),
        c.flag("use_parallel_residual", True),
        "gpt_neox.layers",
    )
    drop = c.fraction("hidden_dropout")
    return assemble(
        c,
        "GPTNeoXForCausalLM",
        [layer] * c.layers(),
        final=final_norm(c, "gpt_neox.final_layer_norm", "layer", bias=True),
        extras=rotary_buffers(attention.rotary_dim, "gpt_neox.rotary_emb."),
        embedding_name="gpt_neox.embed_in",
        dropouts=Dropouts(drop, c.fraction("attention_dropout"), drop, drop),
    )


def falcon(c: Fields) -> ModelSpec:
    """Falcon: one key-value head (7B) or groups (40B, 180B, 11B), q, k, v in one matrix, rotary or ALiBi,
    parallel or not; its mask is always made (modeling_falcon.py, allow_is_causal_skip=False).
    """
    hidden = hidden_of(c)
    a, _, d = c.heads(kv="num_kv_heads", own_dim=False)
    grouped, bias = c.flag("new_decoder_architecture", False), c.flag("bias", False)
    parallel, alibi = c.flag("parallel_attn", True), c.flag("alibi", False)
    kv = c.size("num_kv_heads", default=a) if grouped else 1 if c.flag("multi_query", True) else a
    fused = Linear("self_attention.query_key_value", hidden, (a + 2 * kv) * d, bias)
    linears = (fused, Linear("self_attention.dense", hidden, hidden, bias))
    shared: KeyValues = "expanded" if grouped else "broadcast" if kv < a else "grouped"
    attention = Attention(
        a, kv, d, linears, rotary_dim=0 if alibi else d, alibi=alibi, kv=shared, masked=True, eager="falcon"
    )
    inner = c.size("ffn_hidden_size", default=4 * hidden)
    mlp = plain_mlp(
        c,
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
        inner,
        c.activation("activation", default="gelu"),
        bias=bias,
    )
    count = c.size("num_ln_in_parallel_attn", default=2 if grouped else 1, most=2)
    if not parallel:
        own = pre_norm(c, "layer", bias=True)
    elif count == 2:
        own = norms(c, ("ln_attn", "input"), ("ln_mlp", "pre_mlp"), kind="layer", bias=True)
    else:
        own = norms(c, ("input_layernorm", "input"), kind="layer", bias=True)
    layer = Layer(
        attention,
        mlp,
        own,
        parallel=parallel,
        prefix="transformer.h",
        attention_kept_alive=True,
        branches_in_place=parallel,
    )
    drop = c.fraction(
        "attention_dropout"
    )  # on the scores with ALiBi alone, and after attention where the layer is not parallel
    return assemble(
        c,
        "FalconForCausalLM",
        [layer] * c.layers("num_hidden_layers", "n_layer"),
        tied=True,
        extras=rotary_buffers(d, "transformer.rotary_emb."),  # kept with ALiBi as well
        final=final_norm(c, "transformer.ln_f", "layer", bias=True),
        embedding_name="transformer.word_embeddings",
        dropouts=Dropouts(
            attention=drop if alibi else 0.0,
            attention_output=0.0 if grouped or parallel else drop,
            mlp_output=c.fraction("hidden_dropout"),
        ),
    )


def bloom(c: Fields) -> ModelSpec:
    """BLOOM: ALiBi, a norm on the embeddings, and a GELU of its own that saves its input alone."""
    hidden = hidden_of(c)
    a, _, d = c.heads(kv=None, own_dim=False)
    linears = (
        Linear("self_attention.query_key_value", hidden, 3 * hidden, True),
        Linear("self_attention.dense", hidden, hidden, True),
    )
    mlp = plain_mlp(c, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", 4 * hidden, "gelu_bloom", bias=True)
    attention = Attention(a, a, d, linears, alibi=True, sdpa=False, eager="bloom")
    layer = Layer(attention, mlp, pre_norm(c, "layer", bias=True), prefix="transformer.h")
    drop = c.fraction("hidden_dropout")
    return assemble(
        c,
        "BloomForCausalLM",
        [layer] * c.layers("n_layer", "num_hidden_layers"),
        tied=True,
        extras=(),
        final=final_norm(c, "transformer.ln_f", "layer", bias=True),
        embedding_name="transformer.word_embeddings",
        embedding_norm=norms(
            c, ("transformer.word_embeddings_layernorm", "embedding"), kind="layer", bias=True
        )[0],
        dropouts=Dropouts(0.0, c.fraction("attention_dropout"), drop, drop),
    )
