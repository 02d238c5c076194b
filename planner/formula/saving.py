"""The model written after training, on a tape of its own: what stands on the GPU meanwhile, and on the host.

On one GPU, and where every rank has the whole model, each tensor goes to the host and the file is written
there (safetensors 0.8 torch.py _flatten_as_ptr: all of a file at once): nothing is made on the GPU. FSDP2's
full state dict gathers one parameter after another in the dtype that it is kept in and takes it to the host
(accelerate 1.15 accelerator.py get_state_dict; torch 2.14 distributed/_state_dict_utils.py
_gather_state_dict).
"""

from __future__ import annotations

from memplan.planner.formula.forward.context import Device
from memplan.planner.formula.forward.decoder import Guard
from memplan.planner.formula.parameters import packed_bytes
from memplan.planner.formula.resident.parameter_spec import ParameterSpec
from memplan.planner.formula.sharding.plan import ShardingPlan
from memplan.planner.formula.sharding.strategies import gathers
from memplan.planner.formula.step import Step
from memplan.planner.formula.symbolic.expr import Expr, total
from memplan.planner.formula.tape.tape import Tape
from memplan.planner.tables.components import SAVE
from memplan.planner.tables.dtypes import DTYPE_BITS


def run_save(device: Device, guard: Guard, rank: ShardingPlan) -> Tape:
    """The log of saving the model, its one moment SAVE."""
    return _Save(rank.seen, device, guard, rank).run()


def saved_on_host(rank: ShardingPlan) -> Expr:
    """Bytes on the host of the rank that writes: what is saved; of ranks that gather all of the model, since
    PEFT picks the adapter's tensors out of that.
    """
    if not gathers(rank.setup):
        return rank.stored.checkpoint_bytes()
    return total(packed_bytes(each.elements, each.dtype) * each.count for each in _kept(rank))


def _kept(rank: ShardingPlan) -> list[ParameterSpec]:
    return [each for each in rank.stored.all if each.logical]


class _Save(Step):
    def run(self) -> Tape:
        t = self.tape
        self._residents()
        self._left_by_training()
        t.mark(SAVE)
        for each in _kept(self.rank) if gathers(self.setup) else ():
            packed = DTYPE_BITS[each.dtype] < 8
            shape = (packed_bytes(each.elements, each.dtype),) if packed else each.shape
            whole = t.alloc(
                f"{each.name} gathered",
                shape,
                "uint8" if packed else each.dtype,
                "one parameter whole, on its way to the host",
            )
            del whole
        t.end_forward()
        t.mark("end")
        return t
