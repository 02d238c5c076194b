"""What families are made of: attention, MLP and norm builders, and `assemble`, which turns layers into a
ModelSpec.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Literal

from memplan.planner.inputs.families.fields import Fields
from memplan.planner.inputs.spec import (
    Attention,
    Dropouts,
    Extra,
    Layer,
    Linear,
    Mlp,
    ModelSpec,
    Norm,
    Position,
    Style,
)

NormKind = Literal["rms", "layer"]
SLIDING, FULL = "sliding_attention", "full_attention"


def hidden_of(c: Fields) -> int:
    """H, under either of its names."""
    return c.size("hidden_size", "n_embd", "n_embed")


def norms(
    c: Fields,
    *rows: tuple[str, Position],
    kind: NormKind = "rms",
    weight: bool = True,
    bias: bool = False,
    style: Style = "plain",
) -> tuple[Norm, ...]:
    """One norm over the hidden size for each (name, position)."""
    size = hidden_of(c)
    return tuple(Norm(name, size, kind, weight, bias, position, style=style) for name, position in rows)


def pre_norm(
    c: Fields, kind: NormKind = "rms", weight: bool = True, bias: bool = False, style: Style = "plain"
) -> tuple[Norm, ...]:
    """Llama's pair: one norm before attention, one before the MLP (which transformers calls
    post_attention_layernorm).
    """
    rows: tuple[tuple[str, Position], ...] = (
        ("input_layernorm", "input"),
        ("post_attention_layernorm", "pre_mlp"),
    )
    return norms(c, *rows, kind=kind, weight=weight, bias=bias, style=style)


def final_norm(
    c: Fields,
    name: str = "model.norm",
    kind: NormKind = "rms",
    weight: bool = True,
    bias: bool = False,
    style: Style = "plain",
) -> Norm:
    """The norm before the output head, of the hidden size."""
    return norms(c, (name, "final"), kind=kind, weight=weight, bias=bias, style=style)[0]


def qk_norms(a: int, k: int, d: int, style: Style = "plain", prefix: str = "self_attn.") -> tuple[Norm, ...]:
    """An RMS norm over each head of q and of k, shared by the heads (Qwen 3, Gemma 3)."""
    return (
        Norm(f"{prefix}q_norm", d, position="q", heads=a, style=style),
        Norm(f"{prefix}k_norm", d, position="k", heads=k, style=style),
    )


def gqa(
    c: Fields,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    kv_default: int | None = None,
    head_dim: int | None = None,
    assumed: int | None = None,
    window: int | None = None,
    out: str = "o_proj",
    kv: str | None = "num_key_value_heads",
    own_dim: bool = True,
    **more: Any,
) -> Attention:
    """Separate q, k, v and output projections with rotary embedding."""
    hidden = hidden_of(c)
    a, k, d = c.heads(kv=kv, kv_default=kv_default, head_dim=head_dim, assumed=assumed, own_dim=own_dim)
    linears = (
        Linear("self_attn.q_proj", hidden, a * d, qkv_bias),
        Linear("self_attn.k_proj", hidden, k * d, qkv_bias),
        Linear("self_attn.v_proj", hidden, k * d, qkv_bias),
        Linear(f"self_attn.{out}", a * d, hidden, o_bias),
    )
    if "rotary_dim" not in more:
        more["rotary_dim"] = c.rotary(d)
    return Attention(a, k, d, linears, window=window, **more)


def gated_mlp(
    c: Fields,
    *,
    bias: bool = False,
    intermediate: int | None = None,
    prefix: str = "mlp",
    activation: str | None = None,
) -> Mlp:
    """gate_proj and up_proj to the intermediate size, down_proj back."""
    hidden, inner = hidden_of(c), intermediate or c.size("intermediate_size")
    linears = (
        Linear(f"{prefix}.gate_proj", hidden, inner, bias),
        Linear(f"{prefix}.up_proj", hidden, inner, bias),
        Linear(f"{prefix}.down_proj", inner, hidden, bias),
    )
    return Mlp(inner, linears, activation=activation or c.activation("hidden_act", default="silu"))


def plain_mlp(
    c: Fields,
    up: str,
    down: str,
    inner: int,
    activation: str,
    *,
    bias: bool,
    kind: Literal["linear", "conv1d"] = "linear",
) -> Mlp:
    """Two linear layers with an activation between them."""
    hidden = hidden_of(c)
    return Mlp(
        inner,
        (Linear(up, hidden, inner, bias, kind), Linear(down, inner, hidden, bias, kind)),
        gated=False,
        activation=activation,
    )


def windows(c: Fields, count: int, default: int | None, slides: Callable[[int], bool]) -> list[int | None]:
    """The sliding window of each layer: from layer_types where the config lists them, else where
    `slides(index)`.

    `default` is the config class's sliding_window; an explicit null switches every window off.
    """
    size = c.maybe_size("sliding_window") if "sliding_window" in c.config else default
    kinds = c.names("layer_types", count, (FULL, SLIDING))
    return [size if (kinds[i] == SLIDING if kinds else slides(i)) else None for i in range(count)]


def rotary_buffers(dim: int, prefix: str = "model.rotary_emb.") -> tuple[Extra, ...]:
    """The float32 inverse frequencies that a rotary embedding keeps, twice (transformers 5: inv_freq and
    original_inv_freq).
    """
    return tuple(
        Extra(f"{prefix}{name}", ((dim + 1) // 2,), "buffer", "float32")
        for name in ("inv_freq", "original_inv_freq")
    )


def assemble(
    c: Fields,
    architecture: str,
    layers: Sequence[Layer],
    *,
    tied: bool = False,
    final: Norm | None = None,
    extras: tuple[Extra, ...] | None = None,
    vocab: int | None = None,
    **more: Any,
) -> ModelSpec:
    """The ModelSpec of `layers`; `tied` is the config class's default for tie_word_embeddings.

    `final` defaults to an RMS norm named model.norm, `extras` to the rotary buffers of the first layer that
    has any, `vocab` to vocab_size.
    """
    hidden = hidden_of(c)
    if extras is None:
        dim = next((layer.attention.rotary_dim for layer in layers if layer.attention.rotary_dim), 0)
        extras = rotary_buffers(dim) if dim else ()
    if "dropouts" not in more:
        more["dropouts"] = Dropouts(attention=c.fraction("attention_dropout"))
    vocab = vocab or c.size("vocab_size")
    return ModelSpec(
        name=c.name,
        model_type=str(c.config.get("model_type")),
        architecture=architecture,
        hidden=hidden,
        vocab=vocab,
        layers=tuple((sum(1 for _ in run), layer) for layer, run in groupby(layers)),
        tied=c.flag("tie_word_embeddings", tied),
        final_norm=final or Norm("model.norm", hidden, position="final"),
        extras=extras,
        checkpoint_dtype=c.dtype(),
        config=c.config,
        notes=tuple(dict.fromkeys(c.notes)),
        **{"embedding_dim": hidden, **more},
    )
