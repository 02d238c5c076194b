"""Which sharding plan and which schedule a strategy has: the one place that knows both."""

from __future__ import annotations

from collections.abc import Callable

from memplan.planner.formula.parameters import ParameterTable
from memplan.planner.formula.sharding.plan import Schedule, ShardingPlan
from memplan.planner.formula.sharding.refusals import refuse_sharding
from memplan.planner.formula.sharding.strategies import flattens, seen, stored, wraps
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.inputs.tasks import headed


def sharding_plan(spec: ModelSpec, setup: Setup) -> ShardingPlan:
    """One rank's share under the setup's strategy. Raises UsageError where the strategy has no rule for the
    setup.
    """
    refuse_sharding(setup)
    spec = headed(spec, setup)
    if not wraps(setup):
        return ShardingPlan(ParameterTable(spec, setup))
    plan, schedule = _kinds()["fsdp1" if flattens(setup) else setup.parallel]
    rank = plan(ParameterTable(spec, stored(setup)), ParameterTable(spec, seen(setup)))
    rank.schedule = schedule
    return rank


def _kinds() -> dict[str, tuple[Callable[..., ShardingPlan], Schedule]]:
    """Strategy -> its plan and its schedule. Loaded only where ranks share: a prediction for one GPU does not
    pay for them.
    """
    from memplan.planner.formula.sharding.ddp import DdpHooks, DdpPlan
    from memplan.planner.formula.sharding.fsdp1_load import Fsdp1Rank
    from memplan.planner.formula.sharding.fsdp1_schedule import Fsdp1Schedule
    from memplan.planner.formula.sharding.fsdp_load import FsdpRank
    from memplan.planner.formula.sharding.fsdp_schedule import FsdpSchedule
    from memplan.planner.formula.sharding.zero import Zero3Plan, ZeroPlan
    from memplan.planner.formula.sharding.zero3_schedule import Zero3Schedule
    from memplan.planner.formula.sharding.zero12_schedule import Zero12Schedule

    return {
        "ddp": (DdpPlan, DdpHooks),
        "fsdp1": (Fsdp1Rank, Fsdp1Schedule),
        "fsdp": (FsdpRank, FsdpSchedule),
        "zero1": (ZeroPlan, Zero12Schedule),
        "zero2": (ZeroPlan, Zero12Schedule),
        "zero3": (Zero3Plan, Zero3Schedule),
    }
