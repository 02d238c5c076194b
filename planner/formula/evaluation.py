"""An evaluation step on a tape of its own: the loss of a larger batch without a graph, after the optimizer's
step; what `planner/run/evaluation.py` runs.
"""

from __future__ import annotations

from dataclasses import replace

from memplan.planner.formula.forward.context import Context, Device
from memplan.planner.formula.forward.decoder import Decoder, Guard
from memplan.planner.formula.parameters import ParameterTable
from memplan.planner.formula.resident.loading import batch_shapes
from memplan.planner.formula.sharding.plan import ShardingPlan
from memplan.planner.formula.step import Step
from memplan.planner.formula.symbolic.expr import const
from memplan.planner.formula.tape.tape import Tape
from memplan.planner.inputs.tasks import rows
from memplan.planner.tables.components import EVALUATION


def run_evaluation(
    parameter_table: ParameterTable, device: Device, guard: Guard, rank: ShardingPlan | None = None
) -> Tape:
    """The log of one evaluation step, its one moment EVALUATION. Gradients are there where the next step
    frees them.
    """
    return _Evaluation(parameter_table, device, guard, rank or ShardingPlan(parameter_table)).run()


class _Evaluation(Step):
    def run(self) -> Tape:
        t, setup = self.tape, self.setup
        self._residents()
        freed = setup.zero_grad == "after_step" or setup.loop.frees_gradients
        if not freed and not setup.optimizer_in_backward:
            self._old_gradients()
        t.mark(EVALUATION)
        t.training = False
        self.setup = setup.with_(micro_batch=setup.eval_batch, checkpointing="none", gradient_accumulation=1)
        count = rows(self.setup) * self.setup.micro_batch
        self.guard = replace(self.guard, single=count == 1)
        batch, before = const(count), self.w
        self.w = Context(
            t, self.setup, self.parameter_table, before.device, batch, before.sequence, count == 1, {}
        )
        self.w.past = before.past
        ids = [
            t.alloc(name, shape, "int64", "the batch of the evaluation")
            for name, shape in batch_shapes(self.setup, batch)
        ]
        with t.no_grad():
            self.decoder = Decoder(self.w, self.guard, self.hooks, ids[0])
            outputs = self._forward()
            del outputs, ids
            self.decoder.prefix.drop()
        t.end_forward()
        t.mark("end")
        return t
