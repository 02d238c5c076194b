"""ModelSpec: what a model is, parsed and checked once from its config.json.

A spec is data: runs of equal decoder layers, each a norm / attention / MLP description whose linear layers carry their names and
shapes. `parameters.py` turns it into rows of weights, `activations.py` walks it to find what a forward pass saves.
Adding a family is adding one function to FAMILIES.

H hidden, I intermediate, L layers, V vocabulary, A heads, K key-value heads, D head size, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from planner.errors import UsageError, shorten


@dataclass(frozen=True, slots=True)
class Linear:
    """A weight of `out_features` x `in_features` applied to activations; `conv1d` is GPT-2's transposed layer."""

    name: str
    in_features: int
    out_features: int
    bias: bool = False
    kind: Literal["linear", "conv1d"] = "linear"

    @property
    def parameters(self) -> int:
        return self.in_features * self.out_features + (self.out_features if self.bias else 0)


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalisation over the last `size` elements; `elements` is 2 x size where it has a bias, 0 where it has no weight."""

    name: str
    size: int
    kind: Literal["rms", "layer"] = "rms"
    weight: bool = True
    bias: bool = False
    position: str = "input"  # input, post_attention, pre_mlp, post_mlp, q, k, kv_a, q_a, final, ...

    @property
    def parameters(self) -> int:
        return self.size * (int(self.weight) + int(self.bias))


@dataclass(frozen=True, slots=True)
class Attention:
    """Self-attention: `linears` in the order in which the forward calls them."""

    heads: int
    kv_heads: int
    head_dim: int
    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...] = ()  # q / k norms, MLA's latent norms
    value_dim: int | None = None  # where it differs from head_dim (MLA)
    window: int | None = None
    rotary_dim: int = 0  # 0: no rotary embedding
    softcap: float | None = None
    sinks: bool = False
    kind: Literal["gqa", "mla"] = "gqa"
    alibi: bool = False


@dataclass(frozen=True, slots=True)
class Mlp:
    """A dense MLP: gated (act(gate(x)) * up(x), then down) or plain (act(up(x)), then down)."""

    intermediate: int
    linears: tuple[Linear, ...]
    gated: bool = True
    activation: str = "silu"
    fused_gate_up: bool = False


@dataclass(frozen=True, slots=True)
class Moe:
    """A mixture of experts held as 3-D parameters (transformers 5), with its router and shared experts."""

    experts: int
    top_k: int
    intermediate: int
    parameters: tuple[tuple[str, tuple[int, ...]], ...]  # expert parameters by name and shape, as transformers holds them
    router: tuple[tuple[str, tuple[int, ...]], ...] = ()
    shared: Mlp | None = None
    shared_gate: Linear | None = None
    gated: bool = True
    activation: str = "silu"


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer. `parallel`: attention and MLP both read the same normed input (GPT-NeoX, Falcon)."""

    attention: Attention
    mlp: Mlp | Moe
    norms: tuple[Norm, ...]
    parallel: bool = False
    prefix: str = "model.layers"

    def linears(self) -> Iterator[Linear]:
        """Every nn.Linear / Conv1D of the layer, which is what adapters target and k-bit loading quantises (routers apart)."""
        yield from self.attention.linears
        if isinstance(self.mlp, Mlp):
            yield from self.mlp.linears
        elif self.mlp.shared is not None:
            yield from self.mlp.shared.linears
            if self.mlp.shared_gate is not None:
                yield self.mlp.shared_gate


@dataclass(frozen=True, slots=True)
class Extra:
    """A parameter or buffer that no other field describes."""

    name: str
    shape: tuple[int, ...]
    kind: Literal["parameter", "buffer"] = "parameter"
    dtype: str | None = None  # None: the model's dtype
    per_layer: bool = False


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
    max_positions: int | None = None  # longest sequence the learned positions allow; None where positions are computed
    projections: tuple[Linear, ...] = ()  # outside the layers: OPT's project_in / project_out
    extras: tuple[Extra, ...] = ()
    embedding_norm: Norm | None = None
    logit_softcap: float | None = None
    checkpoint_dtype: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        return sum(count for count, _ in self.layers)


def read_config(config: Mapping[str, Any], name: str = "model") -> ModelSpec:
    """The ModelSpec of a parsed config.json. Raises UsageError naming the key, the value and what was expected."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UsageError(f"config of '{shorten(name)}': model_type is {shorten(repr(model_type))}, expected a name such as 'llama'")
    family = FAMILIES.get(model_type)
    if family is None:
        raise UsageError(f"the formula has no rule for model_type '{shorten(model_type)}': use --engine trace, which runs the transformers class itself")
    return family(name, config)


def positive(config: Mapping[str, Any], key: str, default: int | None = None, most: int = 10**8) -> int:
    """A positive integer of the config; `default` where the key is absent or null. Raises UsageError otherwise."""
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        shown = "missing" if value is None else shorten(repr(value))
        raise UsageError(f"config key {key} is {shown}: expected an integer from 1 to {most}")
    return value


FAMILIES: dict[str, Callable[[str, Mapping[str, Any]], ModelSpec]] = {}
