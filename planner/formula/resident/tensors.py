"""weight_tensors: every parameter and buffer of a ModelSpec, named as transformers names it, one entry for
each kind of tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from memplan.planner.inputs.spec import Layer, Linear, ModelSpec, Moe, Norm

# linear / conv1d: the weight of an nn.Linear / Conv1D in a layer or a projection: what adapters target and
# k-bit loading quantizes. expert: a 3-D (or 2-D bias) parameter of all experts; router: the routing layer's
# own; head: the output projection's weight. bias: the bias of a linear or of the head; scalar: any other
# parameter (attention sinks).
Role = Literal[
    "linear",
    "conv1d",
    "expert",
    "router",
    "embedding",
    "position",
    "head",
    "norm",
    "bias",
    "scalar",
    "buffer",
    "tower",
    "tower_linear",
]


@dataclass(frozen=True, slots=True)
class WeightTensor:
    """One kind of tensor. `*` in the name stands for the layer's index, which is in `layers` (empty outside
    the layers).
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    layers: tuple[int, ...] = ()
    tied_to: str | None = None  # the name of the tensor that holds its storage: counts no bytes
    dtype: str | None = None  # None: the model's dtype

    @property
    def count(self) -> int:
        """How many tensors of this kind the model has: one for each of its layers, or one."""
        return len(self.layers) or 1

    @property
    def elements(self) -> int:
        """Elements of one tensor of this kind, tied or not."""
        return prod(self.shape)

    def each(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The name and shape of every tensor of this kind, with the layers' indices filled in."""
        if not self.layers:
            yield self.name, self.shape
        for layer in self.layers:
            yield self.name.replace("*", str(layer)), self.shape

    @property
    def module(self) -> str:
        """The name without its last part: what a target such as q_proj is matched against."""
        return self.name.rpartition(".")[0]


def weight_tensors(spec: ModelSpec) -> Iterator[WeightTensor]:
    """Every tensor of the model in the order embeddings, layers, final norm, head, buffers; equal tensors of
    several layers are one entry.

    The sum of elements x count over entries that are neither tied nor buffers is `spec.parameters`.
    """
    embedding = f"{spec.embedding_name}.weight"
    yield WeightTensor(embedding, (spec.vocab, spec.embedding_dim), "embedding")
    if spec.learned_positions is not None:
        yield WeightTensor(f"{spec.position_name}.weight", (spec.learned_positions, spec.hidden), "position")
    if spec.embedding_norm is not None:
        yield from _norm(spec.embedding_norm, "")
    for linear in spec.projections:
        yield from _linear(linear, "")
    yield from _layer_tensors(spec)
    if spec.final_norm is not None:
        yield from _norm(spec.final_norm, "")
    yield WeightTensor(
        f"{spec.head_name}.weight", spec.head.shape, "head", tied_to=embedding if spec.tied else None
    )
    if spec.head_bias:
        yield WeightTensor(f"{spec.head_name}.bias", (spec.head.out_features,), "bias")
    for extra in spec.extras:
        role: Role = "scalar" if extra.kind == "parameter" else extra.kind
        yield WeightTensor(extra.name, extra.shape, role, dtype=extra.dtype)


def _layer_tensors(spec: ModelSpec) -> Iterator[WeightTensor]:
    """The layers' tensors: those with the same name, shape and role are merged over all layers that have
    them.
    """
    merged: dict[WeightTensor, list[int]] = {}
    seen: dict[Layer, list[WeightTensor]] = {}
    start = 0
    for count, layer in spec.layers:
        if layer not in seen:
            seen[layer] = list(_one_layer(layer))
        for tensor in seen[layer]:
            merged.setdefault(tensor, []).extend(range(start, start + count))
        start += count
    for tensor, layers in merged.items():
        yield WeightTensor(tensor.name, tensor.shape, tensor.role, tuple(layers), None, tensor.dtype)


def _one_layer(layer: Layer) -> Iterator[WeightTensor]:
    prefix = f"{layer.prefix}.*."
    for norm in (*layer.norms, *layer.attention.norms):
        yield from _norm(norm, prefix)
    for linear in layer.linears():
        yield from _linear(linear, prefix)
    if layer.attention.sinks:
        yield WeightTensor(f"{prefix}self_attn.sinks", (layer.attention.heads,), "scalar")
    if isinstance(layer.mlp, Moe):
        yield from (
            WeightTensor(prefix + name, shape, "router", dtype=layer.mlp.router_dtype)
            for name, shape in layer.mlp.router
        )
        yield from (WeightTensor(prefix + name, shape, "expert") for name, shape in layer.mlp.parameters)
        yield from (
            WeightTensor(prefix + name, shape, "buffer", dtype="float32") for name, shape in layer.mlp.buffers
        )


def _linear(linear: Linear, prefix: str) -> Iterator[WeightTensor]:
    yield WeightTensor(f"{prefix}{linear.name}.weight", linear.shape, linear.kind)
    if linear.bias:
        yield WeightTensor(f"{prefix}{linear.name}.bias", (linear.out_features,), "bias")


def _norm(norm: Norm, prefix: str) -> Iterator[WeightTensor]:
    shape = (norm.heads, norm.size) if norm.per_head else (norm.size,)
    if norm.weight:
        yield WeightTensor(f"{prefix}{norm.name}.weight", shape, "norm")
    if norm.bias:
        yield WeightTensor(f"{prefix}{norm.name}.bias", shape, "norm")
