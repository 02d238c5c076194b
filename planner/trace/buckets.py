"""DistributedDataParallel's gradient buckets, as storages of the trace."""

from __future__ import annotations

import torch

from memplan.planner.formula.sharding.strategies import wraps
from memplan.planner.inputs.setup import Setup
from memplan.planner.run.built import Built
from memplan.planner.run.model import layer_number, layer_prefix
from memplan.planner.trace.events.attribute import attribute
from memplan.planner.trace.observe import Observer


def buckets(observer: Observer, built: Built, setup: Setup) -> list[torch.Tensor]:
    """What the reducer makes as the model is wrapped, before the first step, and keeps: every gradient once
    more (torch 2.13 csrc/distributed/c10d/reducer.cpp `initialize_buckets`). One for each parameter:
    bucket_cap_mb cuts the same bytes otherwise. Nothing where no DDP wraps the model.
    """
    if setup.parallel != "ddp" or not wraps(setup):
        return []
    made, prefix = [], layer_prefix(built.model)
    for name, parameter in built.model.named_parameters():
        if parameter.requires_grad:
            with observer.scope(name, layer_number(prefix, name)):
                made.append(torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device))
            attribute(observer, made[-1], "temporaries", "bucket")
    return made
