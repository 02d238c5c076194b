"""What follows training on tapes of their own, in the order in which a run has it: an evaluation, the model
saved, its adapter merged. Each is imported where a setup asks for it: most do not.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.planner.formula.forward.context import Device
from memplan.planner.formula.forward.decoder import Guard
from memplan.planner.formula.sharding.plan import ShardingPlan
from memplan.planner.formula.tape.tape import Tape
from memplan.planner.tables.components import EVALUATION, MERGE, SAVE


def after_training(device: Device, guard: Guard, rank: ShardingPlan) -> Iterator[tuple[str, Tape]]:
    """(moment, its tape) of all that a setup has after its training steps."""
    setup = rank.setup
    if setup.eval_batch is not None:
        from memplan.planner.formula.evaluation import run_evaluation

        yield EVALUATION, run_evaluation(rank.seen, device, guard, rank)
    if setup.save:
        from memplan.planner.formula.saving import run_save

        yield SAVE, run_save(device, guard, rank)
    if setup.merge:
        from memplan.planner.formula.merging import run_merge

        yield MERGE, run_merge(rank.seen, device, guard, rank)
