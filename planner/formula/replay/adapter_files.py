"""The file of an inference's adapter, read onto the GPU beside the adapter that it fills (peft 0.21
utils/save_and_load.py load_peft_weights, whose device is the GPU where there is one).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memplan.planner.formula.parameters import ParameterTable
from memplan.planner.formula.replay.events import Events
from memplan.planner.formula.replay.orders import in_order
from memplan.planner.formula.resident.parameter_spec import ParameterSpec
from memplan.planner.tables.dtypes import itemsize


def read_file(
    out: Events,
    table: ParameterTable,
    layers_of: Callable[[ParameterSpec], Sequence[int]],
    elements: Callable[[ParameterSpec], int],
) -> None:
    """Write one adapter's file, which goes once it is copied."""
    tensors = [t for each in table.adapters.values() for t in each.tensors]
    read = []
    for stored, _ in in_order([(t, layers_of(t)) for t in tensors]):
        out.about = (stored.name, stored.shape, stored.dtype, " from its file")
        read.append(out.alloc(elements(stored) * itemsize(stored.dtype)))
    out.free(*read)
