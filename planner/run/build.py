"""Config + Setup + device -> model, adapter, optimizer, batch: the same code on meta, cuda and cpu.

The model's classes are transformers', the adapters peft's, the quantized layers bitsandbytes'. Weights are
random and made on the device one by one, so that the allocator sees what it would see in a real load; their
values move no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from memplan.planner.inputs import quantized
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.sounds import TASK, is_speech
from memplan.planner.inputs.tasks import without_class
from memplan.planner.run import (
    adapters,
    attention,
    batches,
    companions,
    fused_kernels,
    fused_lora,
    mixer_kernels,
    offloading,
    ppo,
    rollout,
)
from memplan.planner.run.built import Built, NoWatcher, Watcher
from memplan.planner.run.launches import Launches
from memplan.planner.run.loading import materialize
from memplan.planner.run.model import listed, quiet, read_config, skeleton
from memplan.planner.run.optimizer import make_optimizer
from memplan.planner.run.preferences import drops_nothing
from memplan.planner.run.quantize import replace_linears
from memplan.planner.run.resizing import resize
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.tasks import TASKS


def outline(config: Mapping[str, Any], setup: Setup) -> nn.Module:
    """The model, every tensor still an unallocated placeholder. UsageError where no library can build it."""
    quantized.refuse(setup)
    task = TASKS[setup.task]
    with quiet():
        if task.classes and not is_speech(config) and listed((task.classes,), read_config(config)) is None:
            raise UsageError(without_class(str(config.get("model_type")), setup))
        if is_speech(config) and setup.task != TASK:
            raise UsageError(
                f"task '{setup.task}': a speech model is trained to transcribe: use --task {TASK}"
            )
        kind = attention.implementation(setup.attention)
        return skeleton(config, setup.weight_dtype, kind, task.head, setup.num_labels)


def build(
    config: Mapping[str, Any],
    setup: Setup,
    device: str,
    *,
    watcher: Watcher | None = None,
    model: nn.Module | None = None,
) -> Built:
    """Model, adapter, optimizer and batch of `config` under `setup` on `device` ("meta", "cuda" or "cpu").

    `model` is an `outline` made before (the trace prunes its layers). Raises UsageError where a library
    rejects the config, the adapter or the method.
    """
    watcher = watcher or NoWatcher()
    where = torch.device(device)
    if model is None:
        model = outline(config, setup)
    with watcher.on_host(), quiet():
        replace_linears(model, setup)
        reference = deepcopy(model) if setup.reference == "model" else None
    with quiet():
        with watcher.announce("load"):
            warnings = materialize(model, setup, where, watcher)
            resize(model, setup)
        base, own = model, frozenset(id(p) for p in model.parameters())
        with watcher.announce("load"):
            model = adapters.prepare(base, setup, where, watcher)
        fused_kernels.install(base, setup)
        fused_lora.install(base, setup)
        if reference is not None:
            with watcher.announce("load"):
                materialize(reference, setup, where, watcher)
                resize(reference, setup)
            reference.eval()
        with watcher.announce("load"):
            beside = companions.made(config, setup, base, where, watcher)
            model = ppo.with_value(model, beside)
        trainable = [p for p in model.parameters() if p.requires_grad]
        model.train(setup.method != "inference")
        if not TASKS[setup.task].dropout:
            drops_nothing(model)
        with watcher.announce("load"):
            optimizer = make_optimizer(model, setup) if trainable else None
            batch = batches.make(base.config, setup, where)
            colocated = None if setup.vllm_sleeps else rollout.share_of_vllm(setup, where)
            waiting = tuple(batches.make(base.config, setup, where) for _ in range(batches.waiting(setup)))
    return Built(
        setup,
        device,
        base.config,
        base,
        model,
        trainable,
        optimizer,
        batch,
        waiting=waiting,
        reference=reference,
        companions=beside,
        colocated=colocated,
        rank_allocator=adapters.rank_allocator(model, setup),
        autocast=_autocast(setup, device),
        kernels=_kernels(base, setup, device),
        offloading=offloading.around_step(model, setup, where, watcher),
        empty_cache=torch.cuda.empty_cache if device == "cuda" else watcher.empty_cache,
        own=own,
        warnings=tuple(warnings),
    )


def _autocast(setup: Setup, device: str) -> Callable[[], AbstractContextManager[Any]]:
    if setup.autocast == "none":
        return nullcontext
    return lambda: torch.autocast(device, dtype=getattr(torch, setup.autocast))


def _kernels(base: nn.Module, setup: Setup, device: str) -> Callable[[], AbstractContextManager[Any]]:
    launch = Launches(setup)

    @contextmanager
    def active() -> Iterator[None]:
        forced = nullcontext() if device == "meta" else attention.on_device(setup.attention)
        mixers = mixer_kernels.functions(base, setup, launch)
        with forced, fused_kernels.functions(base, setup), mixers:
            yield

    return active
