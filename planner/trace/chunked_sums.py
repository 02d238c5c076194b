"""TRL's chunked loss on a GPU that cannot sum bfloat16 products in float32: a meta tensor never says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from memplan.planner.inputs.setup import Setup
from memplan.planner.run import chunked_loss
from memplan.planner.tables.chunked_loss import refuses_chunked_loss
from memplan.planner.tables.errors import UsageError
from memplan.planner.trace.device.target import target_of
from memplan.planner.trace.observe import Observer


@contextmanager
def by_capability(observer: Observer, setup: Setup) -> Iterator[None]:
    """Within it, a sum that torch would refuse on the setup's GPU raises UsageError."""
    target = target_of(setup)
    if target.device != "cuda":
        yield
        return
    add = chunked_loss._add_product

    def add_product(sums: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        if refused := refuses_chunked_loss(target.capability, str(a.dtype).removeprefix("torch.")):
            raise UsageError(refused)
        add(sums, a, b)

    with patch.object(chunked_loss, "_add_product", add_product):
        yield
