"""The orders in which tensors are read, made and stepped through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from memplan.planner.formula.resident.parameter_spec import ParameterSpec

Each = tuple[ParameterSpec, int]  # one tensor: its kind, and its layer (-1 outside the layers)


def each_of(kinds: Iterable[ParameterSpec]) -> Iterator[Each]:
    """Every tensor of each kind, layer by layer."""
    for stored in kinds:
        for layer in stored.layers or (-1,):
            yield stored, layer


_IN_CHECKPOINT = {
    "mixtral": (
        ("mlp.experts.gate_up_proj", "block_sparse_moe.experts.0.w1"),
        ("mlp.experts.down_proj", "block_sparse_moe.experts.0.w2"),
        ("mlp.", "block_sparse_moe."),
    )
}
"""Names that a checkpoint orders its tensors by, where they are not the model's (transformers 5.24
conversion_mapping.py)."""


def natural(model_type: str, each: Each) -> tuple[Any, ...]:
    """transformers' dot_natural_key of the tensor's name in the checkpoint, its layer filled in."""
    stored, layer = each
    name = stored.name
    for ours, theirs in _IN_CHECKPOINT.get(model_type, ()):
        name = name.replace(ours, theirs)
    return tuple(
        (0, layer) if part == "*" else (0, int(part)) if part.isdigit() else (1, part)
        for part in name.split(".")
    )


def in_order(kinds: Sequence[ParameterSpec] | Sequence[tuple[ParameterSpec, Sequence[int]]]) -> list[Each]:
    """Every tensor module by module: what stands before the layers, layer by layer, what stands after."""
    pairs = [(kind, kind.layers) if isinstance(kind, ParameterSpec) else kind for kind in kinds]
    layered = [number for number, (_, layers) in enumerate(pairs) if layers]
    last = layered[-1] if layered else -1
    keyed = [
        ((0 if layers else -1 if number < last else 1), layer, number, stored)
        for number, (stored, layers) in enumerate(pairs)
        for layer in (layers or (-1,))
    ]
    keyed.sort(key=lambda entry: entry[:3])
    return [(stored, layer) for _, layer, _, stored in keyed]
