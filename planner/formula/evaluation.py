"""An evaluation on a tape of its own: the loss of a larger batch without a graph, after the optimizer's
step, and the logits that compute_metrics keeps; what `planner/run/evaluation.py` runs.
"""

from __future__ import annotations

from memplan.planner.formula.forward.context import Context, Device
from memplan.planner.formula.forward.decoder import Decoder, Guard
from memplan.planner.formula.parameters import ParameterTable
from memplan.planner.formula.resident.loading import batch_shapes
from memplan.planner.formula.sharding.plan import ShardingPlan
from memplan.planner.formula.step import Step
from memplan.planner.formula.symbolic.expr import const
from memplan.planner.formula.tape.tape import Tape, Tensor
from memplan.planner.inputs.tasks import evaluates_whole, evaluation_batches, rows
from memplan.planner.tables.components import EVALUATION

KEPT = ("logits", "labels")


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
        self._left_by_training()
        t.mark(EVALUATION)
        t.training = False
        self.setup = setup.with_(micro_batch=setup.eval_batch, checkpointing="none", gradient_accumulation=1)
        count = rows(self.setup) * self.setup.micro_batch
        self.guard = self.guard._replace(single=count == 1)
        with t.no_grad():
            if setup.eval_kept is None:
                for _ in range(2 if self.hooks.keeps else 1):
                    outputs, _, ids = self._batch(count)
                    del outputs, ids
            else:
                self._keep(count, evaluation_batches(setup))
        t.end_forward()
        t.mark("end")
        return t

    def _batch(self, count: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """One batch of `count` rows: its outputs, its labels and all of its tensors."""
        t, before, batch = self.tape, self.w, const(count)
        self.w = Context(
            t, self.setup, self.parameter_table, before.device, batch, before.sequence, count == 1, {}
        )
        self.w.past = before.past
        ids = [
            t.alloc(name, shape, "int64", "the batch of the evaluation")
            for name, shape in batch_shapes(self.setup, batch)
        ]
        self.decoder = Decoder(self.w, self.guard, self.hooks, ids[0])
        outputs, loss = self._forward()
        del loss
        self.decoder.prefix.drop()
        labels = next((tensor for tensor in ids if "labels" in tensor.name), ids[0])
        return outputs, labels, ids

    def _keep(self, count: int, batches: int) -> None:
        """Logits and labels of several batches, those of all ranks, joined as they come
        (planner/run/evaluation.py).
        """
        t, ranks = self.tape, self.setup.gpus
        kept: list[Tensor] = []
        for number in range(batches):
            if evaluates_whole(number, batches):
                *found, ids = self._batch(count)
                like = [(each.shape, each.dtype) for each in found]
            else:
                found = [
                    t.alloc(f"{what} of a batch", *each, "of one more batch")
                    for what, each in zip(KEPT, like, strict=True)
                ]
            for place, what in enumerate(KEPT):
                (rows, *width), dtype = like[place]
                if ranks > 1:
                    shape = (rows * ranks, *width)
                    found[place] = t.alloc(f"{what} of all ranks", shape, dtype, "gathered")
                if not number:
                    kept.append(found[place])
                    continue
                shape = (rows * ranks * (number + 1), *width)
                kept[place] = t.alloc(f"kept {what}", shape, dtype, "of every batch, for compute_metrics")
        del ids
