"""trace(config, setup): two training steps of the real libraries on meta tensors, replayed through the allocator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from planner.live.extras import require

require()

import torch  # noqa: E402

from planner.breakdown import ModelSummary, Prediction  # noqa: E402
from planner.errors import UsageError  # noqa: E402
from planner.live import attention, attribute, shims, step  # noqa: E402
from planner.live.adapters import is_adapter  # noqa: E402
from planner.live.build import Built, build, logical_numel, outline  # noqa: E402
from planner.live.composites import as_on_cuda  # noqa: E402
from planner.live.kernels import Kernels  # noqa: E402
from planner.live.model import layer_list, quiet, reason  # noqa: E402
from planner.live.observe import Log, Observer  # noqa: E402
from planner.live.target import Target, target_of  # noqa: E402
from planner.live.timeline import Timeline  # noqa: E402
from planner.setup import Setup  # noqa: E402

STEPS = 2  # optimizer states appear in the first: the second is the steady one


@dataclass(frozen=True, slots=True)
class Facts:
    """Counts of the model that was traced."""

    architecture: str
    parameters: int
    trainable: int
    total: int
    checkpoint_bytes: int
    host_bytes: int


def trace(config: Mapping[str, Any], setup: Setup, name: str = "model") -> Prediction:
    """Predict by running the real libraries on meta tensors. Raises UsageError where one of them rejects config, adapter or method."""
    target = target_of(setup)
    log, facts = observe(config, setup, target)
    timeline = Timeline(log, setup, target)
    moments, peak, step_peak = timeline.moments()
    return Prediction(
        engine="trace",
        model=ModelSummary(name, facts.architecture, facts.parameters),
        setup=setup,
        trainable_parameters=facts.trainable,
        total_parameters=facts.total,
        checkpoint_bytes=facts.checkpoint_bytes,
        peak=peak,
        step_peak=step_peak,
        moments=moments,
        host_bytes=facts.host_bytes,
        smallest_capacity_bytes=timeline.smallest_capacity(),
        extra={"timeline": timeline.points()},
    )


def observe(config: Mapping[str, Any], setup: Setup, target: Target | None = None) -> tuple[Log, Facts]:
    """Build and run `STEPS` steps on meta under an observer; the log of events and the model's counts."""
    target = target or target_of(setup)
    model = outline(config, setup, "meta")
    kernels = Kernels(target)
    observer = Observer(kernels, shims.answers(setup))
    with ExitStack() as stack:
        for context in (quiet(), _composites(target), attention.modelled(target, setup.attention), shims.applied(observer, setup), observer):
            stack.enter_context(context)
        built = build(config, setup, "meta", watcher=observer, model=model)
        attribute.claim_weights(observer, built)
        observer.settle = attribute.claim_after(observer, built)
        try:
            with named_modules(observer, built.model), attribute.saved_for_backward(observer):
                for index in range(STEPS):
                    step.run(built, observer, index)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"{type(built.base).__name__} cannot run a training step with this setup: {reason(error)}") from error
        attribute.claim_weights(observer, built)
        attribute.settle_rest(observer.log.storages)
        facts = _facts(built, observer)
        observer.freeze()
    return observer.log, facts


def _facts(built: Built, observer: Observer) -> Facts:
    named = list(built.model.named_parameters())
    saved = [p for name, p in named if p.requires_grad] if any(is_adapter(n) for n, _ in named) else [p for _, p in named]
    return Facts(
        architecture=type(built.base).__name__,
        parameters=sum(logical_numel(p) for name, p in named if not is_adapter(name)),
        trainable=sum(logical_numel(p) for _, p in named if p.requires_grad),
        total=sum(logical_numel(p) for _, p in named),
        checkpoint_bytes=sum(p.numel() * p.element_size() for p in saved),
        host_bytes=observer.host_bytes,
    )


def _composites(target: Target) -> AbstractContextManager[None]:
    return as_on_cuda() if target.device == "cuda" else nullcontext()


@contextmanager
def named_modules(observer: Observer, model: torch.nn.Module) -> Iterator[None]:
    """Keep the observer's stack of running modules, through torch's global module hooks (exceptions included: checkpointing stops early)."""
    found = layer_list(model)
    prefix = found[0] + "." if found else None
    table: dict[int, tuple[str, int | None]] = {}
    for name, module in model.named_modules():
        inside = prefix is not None and name.startswith(prefix)
        layer = int(name[len(prefix) :].split(".", 1)[0]) if inside and prefix is not None else None
        table[id(module)] = (name, layer)
    stack = observer.modules
    hooks = torch.nn.modules.module

    def enter(module: torch.nn.Module, args: Any) -> None:
        stack.append(table.get(id(module), ("", None)))

    def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
        stack.pop()

    with ExitStack() as undo:
        undo.callback(hooks.register_module_forward_pre_hook(enter).remove)
        undo.callback(hooks.register_module_forward_hook(leave, always_call=True).remove)
        yield
