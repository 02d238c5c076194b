"""ModelSpec: what a model is, parsed and checked once from its config.json (`families.read_config`).

A spec is data: runs of equal decoder layers, each a norm / attention / MLP description whose linear layers
carry their names and shapes. `tensors.py` lists its weights, `parameters.py` turns them into rows,
`activations.py` walks it to find what a forward pass saves. Names inside a layer are relative to it: the
weight is `{layer.prefix}.{index}.{name}.weight`.

H hidden, I intermediate, L layers, V vocabulary, A heads, K key-value heads, D head size, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, NamedTuple


@dataclass(frozen=True, slots=True)
class Linear:
    """A weight of `out_features` x `in_features` applied to activations; `conv1d` is GPT-2's transposed
    layer.
    """

    name: str
    in_features: int
    out_features: int
    bias: bool = False
    kind: Literal["linear", "conv1d"] = "linear"

    @property
    def parameters(self) -> int:
        """Elements of the weight and the bias."""
        return self.in_features * self.out_features + (self.out_features if self.bias else 0)

    @property
    def shape(self) -> tuple[int, int]:
        """The weight's shape as torch holds it."""
        return (
            (self.in_features, self.out_features)
            if self.kind == "conv1d"
            else (self.out_features, self.in_features)
        )


# What a norm reads, which is also where the forward calls it. `pre_mlp` is what Llama calls
# post_attention_layernorm; `post_attention` and `post_mlp` normalize a branch's output before it is added to
# the residual (Gemma 2, OLMo 2), except in a layer with `post_norm`, where they normalize the sum (OPT-350m).
Position = Literal[
    "input", "pre_mlp", "post_attention", "post_mlp", "q", "k", "q_a", "kv_a", "embedding", "final"
]

# How the norm is written, which decides what it saves. plain: Llama's RMSNorm (float32 inside, cast back,
# times weight) or torch's LayerNorm; gemma: float32 times (1 + float32 weight), cast last; late_cast: weight
# times float32, cast last (OLMo 2, gpt-oss); manual: a LayerNorm spelled out in float32 (Cohere); float32:
# torch's layer_norm on a float32 copy (OLMo 1).
Style = Literal["plain", "gemma", "late_cast", "manual", "float32"]


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalization over the last `size` elements, with or without its weight and bias (OLMo 1 has
    neither).
    """

    name: str
    size: int
    kind: Literal["rms", "layer"] = "rms"
    weight: bool = True
    bias: bool = False
    position: Position = "input"
    heads: int = (
        0  # > 0: the input is (B, S, heads, size), and the weight has heads x size elements where `per_head`
    )
    per_head: bool = False
    style: Style = "plain"

    @property
    def parameters(self) -> int:
        """Elements of the weight and the bias, over all heads where each has its own."""
        return self.size * (self.heads if self.per_head else 1) * (int(self.weight) + int(self.bias))


# How rotary embedding is applied, which decides its temporaries and dtypes (transformers 5.23, each family's
# apply_rotary_pos_emb). half: x cos + rotate_half(x) sin in x's dtype (Llama; Phi and GPT-NeoX on the first
# rotary_dim elements); half_float32: the same with float32 tables, cast back (OLMo); pairs_float32:
# neighbors, on a float32 copy (Cohere); pairs: neighbors (GPT-J); interleaved: pairs are brought together,
# then half (DeepSeek-V3); complex: as complex64 numbers (DeepSeek-V2); split: half-wide tables (gpt-oss).
Rotary = Literal["half", "half_float32", "pairs", "pairs_float32", "interleaved", "complex", "split"]

# How K key-value heads meet A query heads. grouped: as transformers' shared functions do (repeated, or
# enable_gqa); expanded: made in full for every head before rotary embedding (Falcon 40B); broadcast: inside
# scaled_dot_product_attention, for which no fused backend has a way, so that torch takes its math backend
# (Falcon 7B).
KeyValues = Literal["grouped", "expanded", "broadcast"]


@dataclass(frozen=True, slots=True)
class Attention:
    """Self-attention: `linears` in the order in which the forward calls them."""

    heads: int
    kv_heads: int
    head_dim: int
    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...] = ()  # q / k norms, MLA's latent norms
    value_dim: int | None = None  # where it differs from head_dim (MLA)
    window: int | None = None  # sliding window, in tokens
    rotary_dim: int = 0  # 0: no rotary embedding
    softcap: float | None = None
    sinks: bool = (
        False  # a learned logit per head beside the scores (gpt-oss): A parameters named self_attn.sinks
    )
    kind: Literal["gqa", "mla"] = "gqa"
    alibi: bool = False
    rotary: Rotary = "half"
    kv: KeyValues = "grouped"
    masked: bool = False  # the mask is made also where is_causal says it all (Falcon)
    # False: the class has no SDPA path, and transformers runs its eager code where nobody asks for another
    sdpa: bool = True
    scaled_query: bool = False  # q is multiplied by a number before the attention call (OPT)
    rotary_joined: bool = (
        False  # q and k are concatenated of a rotated and a plain part, also where the plain part is empty
    )
    rotary_kept_alive: bool = False  # the parts keep their names until the module returns
    eager: Literal["shared", "bloom", "gptj", "falcon"] = "shared"  # whose way of writing the scores op by op


@dataclass(frozen=True, slots=True)
class Mlp:
    """A dense MLP: gated (act(gate(x)) * up(x), then down) or plain (act(up(x)), then down)."""

    intermediate: int
    linears: tuple[Linear, ...]
    gated: bool = True
    activation: str = "silu"
    fused_gate_up: bool = False
    inline: bool = (
        False  # written out in the decoder layer, whose name for the MLP's input is then its outputs' (OPT)
    )


@dataclass(frozen=True, slots=True)
class Moe:
    """A mixture of experts held as 3-D parameters (transformers 5), with its router and shared experts."""

    experts: int
    top_k: int
    intermediate: int
    parameters: tuple[
        tuple[str, tuple[int, ...]], ...
    ]  # expert parameters by name and shape, as transformers holds them
    router: tuple[tuple[str, tuple[int, ...]], ...] = ()
    shared: Mlp | None = None
    shared_gate: Linear | None = None
    gated: bool = True
    activation: str = "silu"
    router_dtype: str | None = None  # of the router's parameters; None: the model's
    buffers: tuple[
        tuple[str, tuple[int, ...]], ...
    ] = ()  # float32, counted as no parameter (DeepSeek-V3's correction bias)


class Dropouts(NamedTuple):
    """Probabilities while training; above 0, each saves a mask for backward."""

    embedding: float = 0.0
    attention: float = 0.0  # on the attention probabilities
    attention_output: float = 0.0  # after the output projection
    mlp_output: float = 0.0


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer. `parallel`: attention and MLP both read the residual stream, not each other's output
    (GPT-NeoX, Falcon).
    """

    attention: Attention
    mlp: Mlp | Moe
    norms: tuple[Norm, ...]
    parallel: bool = False
    prefix: str = "model.layers"
    post_norm: bool = False
    branches_in_place: bool = False  # of a parallel layer: the MLP's output becomes the sum (Falcon)
    attention_kept_alive: bool = (
        False  # the attention's output keeps its name until the layer returns (GPT-2, Falcon, StableLM)
    )
    named_norm: bool = False  # the attention's normed input keeps its name too (StableLM)
    scaled_branches: bool = (
        False  # what a branch adds to the residual is multiplied by a number first (Granite)
    )

    def linears(self) -> Iterator[Linear]:
        """Every nn.Linear / Conv1D of the layer, which is what adapters target and k-bit loading quantizes
        (routers apart).
        """
        yield from self.attention.linears
        if isinstance(self.mlp, Mlp):
            yield from self.mlp.linears
        elif self.mlp.shared is not None:
            yield from self.mlp.shared.linears
            if self.mlp.shared_gate is not None:
                yield self.mlp.shared_gate

    @property
    def parameters(self) -> int:
        """Elements of all tensors of this layer."""
        count = sum(linear.parameters for linear in self.linears())
        count += sum(norm.parameters for norm in (*self.norms, *self.attention.norms))
        count += self.attention.heads if self.attention.sinks else 0
        if isinstance(self.mlp, Moe):
            count += sum(prod(shape) for _, shape in (*self.mlp.parameters, *self.mlp.router))
        return count


class Extra(NamedTuple):
    """A parameter or buffer that no other field describes."""

    name: str
    shape: tuple[int, ...]
    # tower: a part beside the language model, all its tensors together, its linear layers apart
    kind: Literal["parameter", "buffer", "tower", "tower_linear"] = "parameter"
    dtype: str | None = None  # None: the model's dtype


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The architecture numbers of one decoder-only transformer."""

    name: str
    model_type: str
    architecture: str
    hidden: int
    vocab: int
    layers: tuple[tuple[int, Layer], ...]  # runs of equal layers, in order
    embedding_dim: int  # differs from hidden where a projection follows (OPT-350m)
    tied: bool
    final_norm: Norm | None
    head_bias: bool = False
    learned_positions: int | None = None  # rows of a learned position table (its offset included)
    positions_by_row: bool = (
        False  # counted from each row's mask, so that their embeddings are (B, S, H) (OPT)
    )
    max_positions: int | None = (
        None  # longest sequence the learned positions allow; None where positions are computed
    )
    projections: tuple[Linear, ...] = ()  # outside the layers: OPT's project_in / project_out
    extras: tuple[Extra, ...] = ()
    embedding_norm: Norm | None = None
    logit_softcap: float | None = None
    checkpoint_dtype: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    uncounted: str = ""  # what of the model's other parts (a vision tower) no row counts
    embedding_name: str = "model.embed_tokens"
    position_name: str | None = None
    head_name: str = "lm_head"
    resized_from: int | None = None  # rows of the vocabulary as read, where it is resized then
    whole_type: str = ""  # the model_type of a model with other parts, whose class PEFT is given
    head_outputs: int | None = None  # of a pooled head, a classifier's; None: the vocabulary
    dropouts: Dropouts = Dropouts()
    scaled_embedding: bool = False  # multiplied by a number (Granite) or by a buffer (Gemma)
    empty_window_mask: bool = False  # a mask of window 0 is made that no layer reads (Qwen2-MoE)
    scaled_logits: bool = False  # multiplied or divided by a number (Cohere, Granite)

    @property
    def depth(self) -> int:
        """The number of decoder layers."""
        return sum(count for count, _ in self.layers)

    @property
    def balances(self) -> bool:
        """Whether the model adds a loss of how its experts are chosen (transformers 5.24
        models/mixtral/modeling_mixtral.py load_balancing_loss_func).
        """
        routed = any(isinstance(layer.mlp, Moe) for _, layer in self.layers)
        return routed and self.config.get("output_router_logits") is True

    @property
    def head(self) -> Linear:
        """The output projection; its weight is the embedding's where `tied`."""
        outputs = self.vocab if self.head_outputs is None else self.head_outputs
        return Linear(self.head_name, self.embedding_dim, outputs, bias=self.head_bias)

    @property
    def parameters(self) -> int:
        """Elements of all parameters, tied ones counted once: what `sum(p.numel() for p in
        model.parameters())` gives.
        """
        count = self.vocab * self.embedding_dim
        count += 0 if self.tied else self.head.in_features * self.head.out_features
        count += self.head.out_features if self.head_bias else 0
        count += (self.learned_positions or 0) * self.hidden
        count += sum(n * layer.parameters for n, layer in self.layers)
        count += sum(linear.parameters for linear in self.projections)
        count += sum(norm.parameters for norm in (self.embedding_norm, self.final_norm) if norm is not None)
        return count + sum(prod(e.shape) for e in self.extras if e.kind != "buffer")


WITHOUT_KEY_VALUE_HEADS = ("gpt2", "gptj", "gpt_neox", "opt", "bloom", "falcon")
"""Model types whose configuration has no num_key_value_heads: PEFT then makes keys and values of every head.
"""


def prefix_sizes(spec: ModelSpec) -> tuple[int, int, int]:
    """Layers, heads and width of the keys that PEFT makes for a model by itself (utils/other.py
    _prepare_prompt_learning_config).
    """
    attention = spec.layers[0][1].attention
    heads = attention.heads if spec.model_type in WITHOUT_KEY_VALUE_HEADS else attention.kv_heads
    return spec.depth, heads, heads * attention.head_dim
