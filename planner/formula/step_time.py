"""The least time that a training step can take on a GPU: its arithmetic and its memory traffic at the rates
that the vendor states.

Matrix products at the dense 16-bit rate, or at the rate at which their weights can be read where a batch is
that small; every new tensor of the step written once and read once, and the optimizer's tensors read and
written, at the memory's rate. Kernels reach neither rate: measured steps take longer
(planner/answers/cost.py knows by how much).
"""

from __future__ import annotations

from memplan.planner.formula.engine import rank_of, steady_bytes, symbolic
from memplan.planner.formula.flops import step_cost
from memplan.planner.formula.parameters import ParameterTable
from memplan.planner.formula.resident.parameter_spec import packed_bytes
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.methods import METHODS


def least_seconds(spec: ModelSpec, setup: Setup, gpu: Gpu) -> float:
    """Seconds of one optimizer step of one GPU's micro-batches, communication left out. UsageError where a
    rate is not known, or the products are not done in 16 bit.
    """
    if gpu.bf16_tflops is None or gpu.bandwidth_gbs is None:
        raise UsageError(f"the rates of {gpu.name} are not known")
    if setup.autocast == "none" and setup.weight_dtype == "float32":
        raise UsageError("products in float32, whose rate is not in the GPU table")
    single = setup.replaced(parallel="none", gpus=1, offload="none", gradient_accumulation=1)
    table = symbolic(spec, single).parameter_table
    rank = {"R": rank_of(single)}
    flops, bandwidth = gpu.bf16_tflops * 1e12, gpu.bandwidth_gbs * 1e9
    trains = METHODS[single.method].trains != "nothing"
    passes = 1 + trains + (trains and single.checkpointing != "none")
    weights = sum((packed_bytes(t.elements, t.dtype) * t.count).evaluate(rank) for t in table.base)
    products = max(step_cost(spec, single).total / flops, passes * weights / bandwidth)
    tensors = 2 * steady_bytes(spec, single) / bandwidth
    return setup.gradient_accumulation * (products + tensors) + _update(table, rank) / bandwidth


def _update(table: ParameterTable, rank: dict[str, int]) -> int:
    """Bytes that the optimizer reads (parameters, gradients, states) and writes (parameters, states)."""
    if METHODS[table.setup.method].trains == "nothing":
        return 0
    trained = sum((packed_bytes(t.elements, t.dtype) * t.count).evaluate(rank) for t in table.trained)
    states = sum(
        row.size.evaluate(rank)
        for t in table.trained
        for paged in (False, True)
        for row in table.states_of(t, paged)
    )
    return 3 * trained + 2 * states
