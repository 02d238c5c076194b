"""What families are made of: attention, MLP and norm builders, and `assemble`, which turns layers into a ModelSpec."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from planner.configcheck import Fields
from planner.spec import Attention, Extra, Layer, Linear, Mlp, ModelSpec, Norm, Position


def norms(c: Fields, *rows: tuple[str, Position], kind: str = "rms", weight: bool = True, bias: bool = False) -> tuple[Norm, ...]:
    """One norm over the hidden size for each (name, position)."""
    size = c.size("hidden_size", "n_embd")
    made = "layer" if kind == "layer" else "rms"
    return tuple(Norm(name, size, kind=made, weight=weight, bias=bias, position=position) for name, position in rows)  # type: ignore[arg-type]


def pre_norm(c: Fields, kind: str = "rms", bias: bool = False) -> tuple[Norm, ...]:
    """Llama's pair: one norm before attention, one before the MLP (which transformers calls post_attention_layernorm)."""
    return norms(c, ("input_layernorm", "input"), ("post_attention_layernorm", "pre_mlp"), kind=kind, bias=bias)


def gqa(c: Fields, *, qkv_bias: bool = False, o_bias: bool = False, kv_default: int | None = None, head_dim: int | None = None,
        window: int | None = None, out: str = "o_proj", prefix: str = "self_attn", **more: Any) -> Attention:  # fmt: skip
    """Separate q, k, v and output projections with rotary embedding."""
    hidden = c.size("hidden_size")
    a, k, d = c.heads(kv_default=kv_default, head_dim=head_dim)
    linears = (
        Linear(f"{prefix}.q_proj", hidden, a * d, qkv_bias),
        Linear(f"{prefix}.k_proj", hidden, k * d, qkv_bias),
        Linear(f"{prefix}.v_proj", hidden, k * d, qkv_bias),
        Linear(f"{prefix}.{out}", a * d, hidden, o_bias),
    )
    more.setdefault("rotary_dim", c.rotary(d))
    return Attention(a, k, d, linears, window=window, **more)


def gated_mlp(c: Fields, *, bias: bool = False, intermediate: int | None = None, prefix: str = "mlp", act: str | None = None) -> Mlp:
    """gate_proj and up_proj to the intermediate size, down_proj back."""
    hidden, inner = c.size("hidden_size"), intermediate or c.size("intermediate_size")
    linears = (
        Linear(f"{prefix}.gate_proj", hidden, inner, bias),
        Linear(f"{prefix}.up_proj", hidden, inner, bias),
        Linear(f"{prefix}.down_proj", inner, hidden, bias),
    )
    return Mlp(inner, linears, activation=act or c.activation("hidden_act", default="silu"))


def plain_mlp(c: Fields, up: str, down: str, inner: int, activation: str, *, bias: bool, kind: str = "linear") -> Mlp:
    """Two linear layers with an activation between them."""
    hidden = c.size("hidden_size", "n_embd")
    made: Any = kind
    return Mlp(inner, (Linear(up, hidden, inner, bias, made), Linear(down, inner, hidden, bias, made)), gated=False, activation=activation)


def rotary_buffers(dim: int, prefix: str = "model.rotary_emb.") -> tuple[Extra, ...]:
    """The float32 inverse frequencies that a rotary embedding keeps, twice (transformers 5: inv_freq and original_inv_freq)."""
    return tuple(Extra(f"{prefix}{name}", (dim // 2,), "buffer", "float32") for name in ("inv_freq", "original_inv_freq"))


def assemble(c: Fields, architecture: str, layers: Sequence[Layer], *, tied: bool = False, final: Norm | None = None,
             extras: tuple[Extra, ...] | None = None, **more: Any) -> ModelSpec:  # fmt: skip
    """The ModelSpec of `layers`; `tied` is the config class's default for tie_word_embeddings.

    `final` defaults to an RMS norm named model.norm, `extras` to the rotary buffers of the first layer that has any.
    """
    hidden = c.size("hidden_size", "n_embd")
    if extras is None:
        dim = next((layer.attention.rotary_dim for layer in layers if layer.attention.rotary_dim), 0)
        extras = rotary_buffers(dim) if dim else ()
    if c.has("quantization_config"):
        c.notes.append("the checkpoint is stored quantised: memplan plans with the weight dtype and quantisation of the setup instead")
    fields: dict[str, Any] = {"embedding_dim": hidden, "vocab": c.size("vocab_size"), **more}
    return ModelSpec(
        name=c.name,
        model_type=str(c.config.get("model_type")),
        architecture=architecture,
        hidden=hidden,
        layers=tuple((sum(1 for _ in run), layer) for layer, run in groupby(layers)),
        tied=c.flag("tie_word_embeddings", tied),
        final_norm=final or Norm("model.norm", hidden, position="final"),
        extras=extras,
        checkpoint_dtype=c.dtype(),
        config=c.config,
        notes=tuple(c.notes),
        **fields,
    )
