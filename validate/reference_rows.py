"""Rows known without any engine: every weight, gradient and state, and the usual activations, from the
model's shapes alone.

They let reconciliation name a tensor that a prediction lacks altogether. Shapes: B batch, S sequence, H
hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from memplan.planner.formula.resident.tensors import weight_tensors
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import Mlp, ModelSpec
from memplan.planner.prediction import Row
from memplan.planner.tables import cublas
from memplan.planner.tables.components import Component
from memplan.planner.tables.dtypes import itemsize
from memplan.planner.tables.methods import METHODS

_WIDE, _NARROW = "float32", "bfloat16"


def known_rows(spec: ModelSpec, setup: Setup) -> list[Row]:
    """Candidate rows for `memplan.validate.suspects`: sizes are plain bytes, each in fp32 and in 16 bits."""
    trained = METHODS[setup.method].trains in ("all", "last_layers")
    return [*_weights(spec, trained), *_activations(spec, setup), *_per_head(spec, setup), *_workspaces()]


def _row(name: str, shape: tuple[int, ...], dtype: str, count: int, component: Component) -> Row:
    return Row(
        name,
        shape,
        dtype,
        count,
        prod(shape) * count * itemsize(dtype),
        component,
        "known from the model's shapes",
    )


def _weights(spec: ModelSpec, trained: bool) -> Iterator[Row]:
    for tensor in weight_tensors(spec):
        if tensor.tied_to is not None:
            continue
        for dtype in (_WIDE, _NARROW):
            yield _row(tensor.name, tensor.shape, dtype, tensor.count, "weights")
            if trained:
                yield _row(f"gradient of {tensor.name}", tensor.shape, dtype, tensor.count, "gradients")
                yield _row(
                    f"optimizer state of {tensor.name}", tensor.shape, dtype, tensor.count, "optimizer_states"
                )
            yield _row(f"copy of {tensor.name}", tensor.shape, dtype, 1, "temporaries")


def _activations(spec: ModelSpec, setup: Setup) -> Iterator[Row]:
    batch, sequence = setup.micro_batch, setup.sequence_length
    for name, width in _widths(spec).items():
        for dtype in (_WIDE, _NARROW):
            for count in sorted({1, spec.depth}):
                components: tuple[Component, ...] = ("activations", "temporaries")
                for component in components:
                    yield _row(name, (batch, sequence, width), dtype, count, component)


def _per_head(spec: ModelSpec, setup: Setup) -> Iterator[Row]:
    """Of shape (B, heads, S): what attention keeps a query, in fp32."""
    for heads in {layer.attention.heads for _, layer in spec.layers}:
        for count in sorted({1, spec.depth}):
            yield _row(
                "log-sum-exp of attention",
                (setup.micro_batch, heads, setup.sequence_length),
                _WIDE,
                count,
                "activations",
            )


def _widths(spec: ModelSpec) -> dict[str, int]:
    """Names of the usual activations and their last extent."""
    widths = {"hidden states": spec.hidden, "logits": spec.vocab}
    for _, layer in spec.layers:
        attention = layer.attention
        widths["queries"] = attention.heads * attention.head_dim
        widths["keys or values"] = attention.kv_heads * attention.head_dim
        if isinstance(layer.mlp, Mlp):
            widths["MLP intermediate"] = layer.mlp.intermediate
    return widths


def _workspaces() -> Iterator[Row]:
    for size in cublas.SIZES:
        for count in (1, 2):
            yield Row(
                "cuBLAS workspace", (size,), "uint8", count, size * count, "temporaries", "one a stream"
            )
