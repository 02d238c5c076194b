"""What memplan knows of several GPUs: what would be shared is refused, and what DDP adds beyond the total is said."""

from __future__ import annotations

from planner.errors import UsageError
from planner.setup import Setup

SHARDED = ("fsdp", "zero1", "zero2", "zero3")


def refuse_sharding(setup: Setup) -> None:
    """Raise UsageError where ranks share weights, gradients or states: the whole would be a wrong answer for one rank."""
    if setup.parallel in SHARDED:
        raise UsageError(
            f"parallel '{setup.parallel}' is not predicted yet: what one rank holds under sharding would be a guess. "
            "Predict one GPU that holds everything: --gpus 1 --set parallel=none"
        )


def warnings(engine: str, setup: Setup) -> tuple[str, ...]:
    """What several GPUs add that is not in the total."""
    if setup.parallel != "ddp":
        return ()
    buckets = "" if engine == "formula" else "DDP's gradient buckets (a second copy of the gradients, which the formula counts) and "
    return (f"ddp: {buckets}NCCL's buffers are not in the total",)
