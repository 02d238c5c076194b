"""The model written after training, on a tape of its own: what stands on the GPU meanwhile, and on the host.

On one GPU, and where every rank has the whole model, each tensor goes to the host and the file is written
there (safetensors 0.8 torch.py _flatten_as_ptr: all of a file at once): nothing is made on the GPU. FSDP2's
full state dict gathers one parameter after another in the dtype that it is kept in and takes it to the host
(accelerate 1.15 accelerator.py get_state_dict; torch 2.14 distributed/_state_dict_utils.py
_gather_state_dict); ZeRO-3 gathers the parameters of one module after another (deepspeed 0.19.8
runtime/engine.py _zero3_consolidated_16bit_state_dict). With `save_sharded` each rank writes what it keeps.
Left out: ZeRO-3's small parameters, whole on every rank, are put away meanwhile; they are counted as there.
"""

from __future__ import annotations

from memplan.planner.formula.forward.context import Device
from memplan.planner.formula.forward.decoder import Guard
from memplan.planner.formula.resident.parameter_spec import packed_bytes
from memplan.planner.formula.sharding.plan import ShardingPlan
from memplan.planner.formula.step import Step
from memplan.planner.formula.symbolic.expr import Expr, total
from memplan.planner.formula.tape.tape import Tape
from memplan.planner.tables.components import SAVE
from memplan.planner.tables.methods import METHODS


def run_save(device: Device, guard: Guard, rank: ShardingPlan) -> Tape:
    """The log of saving the model, its one moment SAVE."""
    return _Save(rank.seen, device, guard, rank).run()


def saved_on_host(rank: ShardingPlan) -> Expr:
    """Bytes on the host of the rank that writes: what is saved; of FSDP and of ZeRO-1 and 2 all of the model,
    since PEFT picks the adapter's tensors out of that (accelerate 1.15 accelerator.py get_state_dict copies
    it to the host first).
    """
    setup, adapts = rank.setup, METHODS[rank.setup.method].trains == "adapter"
    if rank.ranks == 1 or setup.parallel in ("none", "ddp") or (adapts and setup.parallel == "zero3"):
        return rank.stored.checkpoint_bytes()
    kept = (each for each in rank.stored.all if each.logical)
    return total(packed_bytes(each.elements, each.dtype) * each.count for each in kept)


class _Save(Step):
    def run(self) -> Tape:
        t = self.tape
        self._residents()
        self._left_by_training()
        t.mark(SAVE)
        for module in () if self.setup.save_sharded else self.rank.gathered():
            whole = [
                t.alloc(f"{name} gathered", shape, dtype, "whole, on its way to the host")
                for name, shape, dtype in module
            ]
            del whole
        t.end_forward()
        t.mark("end")
        return t
