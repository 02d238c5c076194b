"""What memplan knows of several GPUs: nothing is shared yet, so what would be shared is refused, and what DDP adds is said aloud."""

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


def warnings(setup: Setup) -> tuple[str, ...]:
    """What several GPUs add that is not in the total."""
    if setup.parallel != "ddp":
        return ()
    return (
        "ddp: predicted as one GPU on its own; DDP's gradient buckets (torch 2.13 nn/parallel/distributed.py: as large as the gradients, "
        "unless gradient_as_bucket_view=True) and NCCL's buffers are not in the total",
    )
