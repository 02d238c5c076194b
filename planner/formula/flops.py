"""Floating-point operations of one training step: arithmetic on the model's matrices, to compare methods; not
a time.

Per token a matrix of n weights costs 2n operations forward, 2n for the gradient of its input and 2n for its
own where it is trained; the attention products cost 4 x S x A x D a layer forward (half of it under a causal
kernel, taken here) and twice that backward. Gradient checkpointing runs the layers' forward once more.
Dequantizing adds few operations for each weight but no product: counted in elements.
"""

from __future__ import annotations

from dataclasses import dataclass

from memplan.planner.formula.parameters import ParameterTable
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import Mlp, ModelSpec, Moe
from memplan.planner.inputs.tasks import headed, rows
from memplan.planner.tables.methods import METHODS


@dataclass(frozen=True, slots=True)
class StepCost:
    """Operations of one step over the whole micro-batch; `dequantized` elements are read out of 4 or 8 bits
    on the way.
    """

    forward: int
    backward: int
    recomputed: int
    dequantized: int

    @property
    def total(self) -> int:
        """Floating-point operations of the whole step."""
        return self.forward + self.backward + self.recomputed


def matrix_parameters(spec: ModelSpec) -> tuple[int, int]:
    """(weights that each token multiplies with in the layers, in the head); of experts only the chosen ones
    count.
    """
    layers = 0
    for count, layer in spec.layers:
        weights = sum(linear.in_features * linear.out_features for linear in layer.linears())
        if isinstance(layer.mlp, Moe):
            every = sum(_elements(shape) for _, shape in layer.mlp.parameters)
            weights += every * layer.mlp.top_k // layer.mlp.experts
        elif not isinstance(layer.mlp, Mlp):
            weights += 0
        layers += weights * count
    return layers, spec.head.in_features * spec.head.out_features


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def step_cost(spec: ModelSpec, setup: Setup) -> StepCost:
    """Operations of one training step of `setup`, micro-batch and sequence included."""
    tokens = rows(setup) * setup.micro_batch * setup.sequence_length
    spec = headed(spec, setup)
    layers, head = matrix_parameters(spec)
    attention = sum(
        2 * layer.attention.heads * layer.attention.head_dim * setup.sequence_length * count
        for count, layer in spec.layers
    )
    method = METHODS[setup.method]
    parameter_table = ParameterTable(spec, setup)
    adapters = (
        parameter_table.trainable_parameters().evaluate({"R": setup.init_rank or setup.rank})
        if method.trains == "adapter"
        else 0
    )
    forward = 2 * (layers + head + adapters) + attention
    own = {"all": layers + head, "adapter": adapters, "nothing": 0}.get(method.trains, 0)
    depth = spec.depth
    if method.trains == "last_layers":
        share = min(setup.trainable_layers or 0, depth) / max(depth, 1)
        own = round(layers * share)
        backward = 2 * round(layers * share + head) + 2 * own + round(2 * attention * share)
    elif method.trains == "nothing":
        backward = 0
    else:
        backward = 2 * (layers + head + adapters) + 2 * own + 2 * attention
    recomputed = (
        0
        if setup.checkpointing == "none" or method.trains == "nothing"
        else (2 * (layers + adapters) + attention) // setup.checkpoint_every
    )
    reads = 1 + (method.trains != "nothing") + (recomputed > 0)
    dequantized = layers * reads if setup.quant_type != "none" else 0
    return StepCost(forward * tokens, backward * tokens, recomputed * tokens, dequantized)
