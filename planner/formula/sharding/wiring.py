"""Which sharding plan and which schedule a strategy has: the one place that knows both."""

from __future__ import annotations

from collections.abc import Callable

from memplan.planner.formula.parameters import Inventory
from memplan.planner.formula.sharding.plan import Rank, Schedule
from memplan.planner.formula.sharding.strategies import refuse_sharding, seen, stored, wraps
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec


def rank_of(spec: ModelSpec, setup: Setup) -> Rank:
    """One rank's share under the setup's strategy. Raises UsageError where the strategy has no rule for the
    setup.
    """
    refuse_sharding(setup)
    if not wraps(setup):
        return Rank(Inventory(spec, setup))
    plan, schedule = _kinds()[setup.parallel]
    rank = plan(Inventory(spec, stored(setup)), Inventory(spec, seen(setup)))
    rank.schedule = schedule
    return rank


def _kinds() -> dict[str, tuple[Callable[..., Rank], Schedule]]:
    """Strategy -> its plan and its schedule. Loaded only where ranks share: a prediction for one GPU does not
    pay for them.
    """
    from memplan.planner.formula.sharding.ddp import Ddp, Views
    from memplan.planner.formula.sharding.fsdp import Fsdp
    from memplan.planner.formula.sharding.fsdp_schedule import Units
    from memplan.planner.formula.sharding.zero import Zero, Zero3
    from memplan.planner.formula.sharding.zero3_schedule import Gathered
    from memplan.planner.formula.sharding.zero12_schedule import Buckets

    return {
        "ddp": (Ddp, Views),
        "fsdp": (Fsdp, Units),
        "zero1": (Zero, Buckets),
        "zero2": (Zero, Buckets),
        "zero3": (Zero3, Gathered),
    }
