"""Quantities: the numbers that a part of a claim can ask for, each one row in a table. Bytes and counts are
plain numbers.

A check's value is a sum of terms, each a quantity of one model under one setup times a factor, divided by
another such sum where `per` is given. P parameters, L layers, S sequence.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from memplan.planner.inputs.spec import Layer, Mlp
from memplan.planner.prediction import Row
from memplan.planner.tables.components import COMPONENTS
from memplan.planner.tables.errors import UsageError, shorten, unknown
from memplan.validate.engines import Missing
from memplan.validate.evaluation_context import EvaluationContext


@dataclass(frozen=True)
class Term:
    """One quantity of one model under one setup, taken `times` times."""

    quantity: str
    model: str = ""
    gpu: str = ""
    setup: Mapping[str, Any] = field(default_factory=dict)
    engine: str = ""
    moment: str = ""
    component: str = ""
    row: str = ""
    times: float = 1

    def value(self, context: EvaluationContext) -> float:
        """This term in its base unit: bytes, elements, FLOP or a count."""
        return self.times * QUANTITIES[self.quantity](self, context)


TERM_KEYS = {
    "quantity": (str,),
    "model": (str,),
    "gpu": (str,),
    "setup": (dict,),
    "engine": (str,),
    "moment": (str,),
    "component": (str,),
    "row": (str,),
    "times": (int, float),
}


def read_term(table: Any, default: Term) -> Term:
    """A term from its table, what it leaves out taken from `default`; its setup is laid over the default's.
    Raises UsageError.
    """
    if not isinstance(table, dict):
        raise UsageError(
            f'{shorten(repr(table))} is not a term: expected a table such as {{ quantity = "peak", '
            f'setup = {{ method = "full" }} }}'
        )
    for key, value in table.items():
        if key not in TERM_KEYS:
            raise unknown("key of a term", key, TERM_KEYS)
        if not isinstance(value, TERM_KEYS[key]) or isinstance(value, bool):
            raise UsageError(
                f"{key} of a term is {shorten(repr(value))}, expected "
                f"{' or '.join(t.__name__ for t in TERM_KEYS[key])}"
            )
    term = replace(default, **{**table, "setup": {**default.setup, **table.get("setup", {})}})
    if term.quantity not in QUANTITIES:
        raise unknown("quantity", term.quantity, QUANTITIES)
    if term.component and term.component not in COMPONENTS:
        raise unknown("component", term.component, COMPONENTS)
    return term


_RESERVED = {"device"}
"""Quantities that the allocator decides; all others are of tensors."""


def _prediction(term: Term, context: EvaluationContext) -> Any:
    if not term.model:
        raise UsageError(f"quantity '{term.quantity}' needs a model")
    return context.predict(term.model, term.setup, term.engine, replayed=term.quantity in _RESERVED)


def _rows(term: Term, context: EvaluationContext) -> tuple[Row, ...]:
    prediction = _prediction(term, context)
    try:
        rows = prediction.moment(term.moment or prediction.step_peak.moment).rows
    except KeyError:
        raise Missing(f"the prediction has no moment '{term.moment}'") from None
    chosen = tuple(
        row
        for row in rows
        if (not term.component or row.component == term.component)
        and fnmatch.fnmatch(row.name, term.row or "*")
    )
    if term.row and not chosen:
        raise Missing(
            f"no row is named '{term.row}' at {term.moment or prediction.step_peak.moment} of {term.model}"
        )
    return chosen


def _layers(term: Term, context: EvaluationContext) -> list[Layer]:
    return [layer for count, layer in context.spec(term.model).layers for _ in range(count)]


def _mlp_parameters(layer: Layer) -> int:
    if isinstance(layer.mlp, Mlp):
        return sum(linear.parameters for linear in layer.mlp.linears)
    shared = sum(linear.parameters for linear in layer.mlp.shared.linears) if layer.mlp.shared else 0
    total = 0
    for _, shape in layer.mlp.parameters:
        size = 1
        for extent in shape:
            size *= extent
        total += size
    return shared + total


def _linear_parameters(term: Term, context: EvaluationContext) -> int:
    """Weights of every linear layer inside the blocks (what 4-bit loading quantizes) without biases."""
    return sum(
        linear.in_features * linear.out_features
        for layer in _layers(term, context)
        for linear in layer.linears()
    )


def _largest_linear(term: Term, context: EvaluationContext) -> int:
    return max(
        linear.in_features * linear.out_features
        for layer in _layers(term, context)
        for linear in layer.linears()
    )


def _kv_elements(term: Term, context: EvaluationContext) -> int:
    """Elements of keys and values of every layer, a token: L x 2 x kv heads x head size."""
    return sum(2 * layer.attention.kv_heads * layer.attention.head_dim for layer in _layers(term, context))


def _compute_capability(term: Term, context: EvaluationContext) -> float:
    """A GPU's compute capability as one number: 7.5, 8.0."""
    found = context.gpu(term.gpu).capability
    if found is None:
        raise Missing("the compute capability of {gpu} is not known", gpu=term.gpu)
    return found[0] + found[1] / 10


def _matmul_flops(term: Term, context: EvaluationContext) -> int:
    """Matrix-product FLOPs of one training step a token, attention scores apart: forward 2 a weight, backward
    2 for the input's gradient and 2 for the weight's where it trains, recomputation 2 more under
    checkpointing (factors: Kaplan et al. 2020, section 2.1).
    """
    spec, setup = context.spec(term.model), context.setup(term.model, term.setup)
    base = _linear_parameters(term, context) + spec.hidden * spec.vocab
    trained = base if setup.method == "full" else _prediction(term, context).trainable_parameters
    recompute = 2 * _linear_parameters(term, context) if setup.checkpointing != "none" else 0
    if setup.method == "full":
        return 6 * base + recompute
    return 4 * base + 6 * trained + recompute


QUANTITIES: dict[str, Callable[[Term, EvaluationContext], float]] = {
    "peak": lambda t, context: _prediction(t, context).peak.allocated_bytes,
    "step_peak": lambda t, context: _prediction(t, context).step_peak.allocated_bytes,
    "device": lambda t, context: _prediction(t, context).peak.device_bytes,
    "rows": lambda t, context: sum(row.charged for row in _rows(t, context)),
    "row_elements": lambda t, context: sum(_elements(row) for row in _rows(t, context)),
    "checkpoint": lambda t, context: _prediction(t, context).checkpoint_bytes,
    "host": lambda t, context: _prediction(t, context).host_bytes,
    "trainable_parameters": lambda t, context: _prediction(t, context).trainable_parameters,
    "total_parameters": lambda t, context: _prediction(t, context).total_parameters,
    "parameters": lambda t, context: _prediction(t, context).model.parameters,
    "mlp_parameters": lambda t, context: sum(_mlp_parameters(layer) for layer in _layers(t, context)),
    "attention_parameters": lambda t, context: sum(
        linear.parameters for layer in _layers(t, context) for linear in layer.attention.linears
    ),
    "linear_parameters": _linear_parameters,
    "largest_linear": _largest_linear,
    "kv_elements": _kv_elements,
    "layers": lambda t, context: context.spec(t.model).depth,
    "hidden": lambda t, context: context.spec(t.model).hidden,
    "vocabulary": lambda t, context: context.spec(t.model).vocab,
    "matmul_flops": _matmul_flops,
    "compute_capability": _compute_capability,
    "usable": lambda t, context: context.gpu(t.gpu).usable_bytes,
    "one": lambda t, context: 1,
}


def _elements(row: Row) -> int:
    size = row.count
    for extent in row.shape:
        size *= extent
    return size
