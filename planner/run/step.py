"""One training step, announcing its moments: the trace engine and the profiler run this same loop.

Moments: generate where the task samples its batch, forward, backward, optimizer_step (and update_and_allocate
for AdaLoRA); with gradient accumulation, forward and backward repeat.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.tasks import generated
from memplan.planner.run import losses, ppo, rollout
from memplan.planner.run.built import Announcer, Built
from memplan.planner.run.optimizer import Behind
from memplan.planner.tables.tasks import TASKS


def run(built: Built, watcher: Announcer, step: int = 0, most: int | None = None) -> None:
    """Run training step number `step` (from 0) of `built`, announcing each moment to `watcher`.

    `most`: run no more than so many micro-steps of gradient accumulation; None: all that the setup has.
    """
    count = built.setup.gradient_accumulation
    micro_steps = count if most is None else min(count, most)
    with built.kernels():
        LOOPS.get(built.setup.task, _run)(built, watcher, step, micro_steps)


def _run(built: Built, watcher: Announcer, step: int, micro_steps: int) -> None:
    setup, optimizer, loop = built.setup, built.optimizer, built.setup.loop
    samples = TASKS[setup.task].generates
    if optimizer is None:
        built.held = None  # the cache of an answer goes before the next prompt is read
        with watcher.announce("forward", step), torch.no_grad(), built.autocast():
            built.held = built.model(**built.batch)
        return
    if not setup.retain_outputs:
        built.held = None
    if setup.zero_grad == "before_forward":
        optimizer.zero_grad(set_to_none=True)
    outputs: Any = None
    for number in range(micro_steps):
        if samples:
            if _samples(setup, number, micro_steps):
                rollout.run(built, watcher, step)
            built.batch = rollout.micro_batch(built, number)
        with built.offloading():
            with watcher.announce("forward", step):
                outputs = losses.forward(built)
                loss = outputs["loss"]
                if setup.gradient_accumulation > 1:
                    loss = loss / setup.gradient_accumulation
                if not loop.holds_outputs:
                    outputs = None
            if setup.retain_outputs:
                built.held = outputs
            with watcher.announce("backward", step):
                if isinstance(optimizer, Behind):
                    optimizer.backward(loss)
                else:
                    loss.backward()
        del loss
    with watcher.announce("optimizer_step", step):
        if loop.clips and not setup.optimizer_in_backward:
            torch.nn.utils.clip_grad_norm_(built.trainable, 1.0)
        optimizer.step()
    if setup.importance_buffers and built.rank_allocator is not None:
        with watcher.announce("update_and_allocate", step):
            built.rank_allocator(step + 1)
    if setup.zero_grad == "after_step":
        optimizer.zero_grad(set_to_none=True)
    outputs = None


def _samples(setup: Setup, number: int, micro_steps: int) -> bool:
    """Whether a micro-step samples first: where all that was sampled has been used; of fewer micro-steps than
    the setup has, the last stands for all further ones, and samples where one of them does.
    """
    steps, count = generated(setup).steps, setup.gradient_accumulation
    stands = micro_steps < count and number == micro_steps - 1
    return number % steps == 0 or (stands and steps < count)


LOOPS = {"ppo": ppo.run}
"""Task -> the step of its trainer's own loop, where it has one."""


class Unwatched:
    """The announcer that nobody listens to: for benchmarks, which time a step alone."""

    def announce(self, moment: str, step: int = -1) -> AbstractContextManager[None]:
        """Nothing is watched."""
        return nullcontext()
